"""Serving the page until Ctrl-C."""

import contextlib
import logging
import os
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagepriors.studio.contents import Contents
from runkit.errors import UserError
from runkit.machine import usable_cores

if TYPE_CHECKING:
    from imagepriors.studio.guard import Access

log = logging.getLogger(__name__)
_NOTES = {
    "local": "only this machine can open it; --share would listen on all network addresses, with a key in the link",
    "shared": "everyone who reaches this machine and knows this link can draw with its models and see its shards",
    "public": "everyone who reaches this machine can draw with its models and see its shards: no key is required",
}
_ENDING_S = 1.0
"""Seconds that a job may take to notice that it is stopped."""


def serve(
    places: Sequence[Path], *, port: int, share: bool = False, public: bool = False, browser: bool = False
) -> str:
    """Serve the page; returns when Ctrl-C ends it.

    Args:
        places: What it shows, see :meth:`.Contents.open`.
        port: Port; 0 chooses a free one.
        share: Listen on all network addresses, and require a key.
        public: Listen on all network addresses, and require none.
        browser: Open the page in the browser.

    Raises:
        UserError: A place holds nothing to show, the port is taken, or the packages are missing.
    """
    try:
        import starlette  # noqa: F401 - the message is the same for both packages
        import uvicorn
    except ImportError as error:
        raise UserError(f"the studio requires {error.name}: pip install 'imagepriors[studio]'") from error
    from imagepriors.studio.guard import Access, Connection
    from imagepriors.studio.server import make_app

    if share and public:
        raise UserError("share requires a key and public requires none: choose one of them")
    listener = listen("0.0.0.0" if share or public else "127.0.0.1", port)
    _limit_threads()
    contents = Contents.open(places, for_others=share or public)
    app = make_app(contents, access := Access.public() if public else Access.shared() if share else Access())

    class Server(uvicorn.Server):
        """A server whose jobs end with it."""

        def handle_exit(self, sig: int, frame: object) -> None:
            app.state.queue.close()
            super().handle_exit(sig, frame)  # type: ignore[arg-type]

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it logs answers that it cuts off
            await super().shutdown(sockets)

    logging.getLogger("imagepriors.api.defaults").setLevel(logging.WARNING)  # logs the preset of each prior
    _announce(access, listener, "public" if public else "shared" if share else "local", browser)
    for problem in contents.problems:
        log.warning("%s", problem)
    config = uvicorn.Config(app, http=Connection, log_level="error", timeout_graceful_shutdown=1, limit_concurrency=512)
    with contextlib.suppress(KeyboardInterrupt):  # the server raises it again, after it has ended
        Server(config).run(sockets=[listener])
    _leave("the studio has ended")
    return "the studio has ended"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: The port is taken or not allowed.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"port {port} cannot be opened ({why}): choose another, or 0 for a free one") from error
    return listener


def _limit_threads() -> None:
    """Compute with the cores that a container may use: torch counts those of the whole machine."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def _announce(access: "Access", listener: socket.socket, how: str, browser: bool) -> None:
    port = listener.getsockname()[1]
    path = f"/?key={access.key}" if access.key else "/"
    log.info("open http://%s:%d%s; Ctrl-C ends it", "127.0.0.1" if access.local else _own_address(), port, path)
    log.info(_NOTES[how])
    if browser:
        webbrowser.open(f"http://127.0.0.1:{port}{path}")


def _own_address() -> str:
    """The address by which other machines of the network reach this one; its name where there is no network."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address for documentation; nothing is sent
        return str(probe.getsockname()[0])
    return socket.gethostname()


def _leave(message: str) -> None:
    """End the process here if a thread still computes: Python would wait for it, and a network may take minutes."""
    until = time.monotonic() + _ENDING_S
    waited = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    for thread in waited:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in waited):
        print(message, file=sys.stdout, flush=True)  # noqa: T201 - the command's answer
        os._exit(0)
