"""Serving the page until Ctrl-C."""

import logging
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from imagepriors.studio.contents import Contents
from runkit.errors import UserError

log = logging.getLogger(__name__)


def serve(places: Sequence[Path], *, port: int, share: bool, browser: bool) -> str:
    """Serve the page; returns when it is stopped.

    Args:
        places: What it shows, see :meth:`.Contents.open`.
        port: Port; 0 chooses a free one.
        share: Listen on all network addresses, and require a key.
        browser: Open the page in the browser.

    Raises:
        UserError: A place holds nothing to show, the port is taken, or the packages are missing.
    """
    try:
        import uvicorn

        from imagepriors.studio.guard import Access
        from imagepriors.studio.server import make_app
    except ImportError as error:
        raise UserError(f"the studio requires {error.name}: pip install 'imagepriors[studio]'") from error
    contents, access = Contents.open(places), Access.shared() if share else Access()
    listener = listen("0.0.0.0" if share else "127.0.0.1", port)
    address = f"{socket.gethostname() if share else '127.0.0.1'}:{listener.getsockname()[1]}"
    link = f"http://{address}/" + (f"?key={access.key}" if access.key else "")
    log.info("open %s; Ctrl-C ends it", link)
    if share:
        log.info("everyone who reaches this machine and knows this link can draw with its models and see its shards")
    else:
        log.info("only this machine can open it; --share would listen on all network addresses, with a key in the link")
    if browser:
        webbrowser.open(link)
    uvicorn.Server(uvicorn.Config(make_app(contents, access), log_level="warning", timeout_graceful_shutdown=1)).run(
        sockets=[listener]
    )
    return f"the studio at http://{address}/ has ended"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: The port is taken or not allowed.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"port {port} cannot be opened ({error}): choose another, or 0 for a free one") from error
    listener.listen()
    return listener
