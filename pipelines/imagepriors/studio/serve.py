"""Serving the page until Ctrl-C."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from imagepriors.api.defaults import PathLike
from imagepriors.studio.contents import Contents
from runkit.errors import UserError
from runkit.machine import usable_cores

if TYPE_CHECKING:
    import uvicorn

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
    places: Sequence[PathLike], *, port: int, share: bool = False, public: bool = False, browser: bool = False
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
    server, listener, access = _prepared(places, port, share=share, public=public)
    _announce(access, listener, "public" if public else "shared" if share else "local", browser)
    with contextlib.suppress(KeyboardInterrupt):  # the server raises it again, after it has ended
        server.run(sockets=[listener])
    _leave("the studio has ended")
    return "the studio has ended"


class Studio:
    """A page that a thread serves until it is closed; make one with :func:`.open_studio`."""

    def __init__(self, places: Sequence[PathLike], port: int, *, share: bool) -> None:
        self._server, listener, access = _prepared(places, port, share=share)
        self.url = address_of(access, listener)
        """The link to open."""
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Studio({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what is drawn, and serve the page no longer."""
        self._server.handle_exit(signal.SIGTERM, None)
        self._thread.join()


def _prepared(
    places: Sequence[PathLike], port: int, *, share: bool, public: bool = False
) -> "tuple[uvicorn.Server, socket.socket, Access]":
    """The server of a page, the socket that it is to serve, and who may open it; errors as :func:`serve`."""
    try:
        import starlette  # noqa: F401 - the message is the same for both packages
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"the studio requires {error.name}: pip install 'imagepriors[studio]'") from error
    from imagepriors.studio.guard import Access

    if share and public:
        raise UserError("share requires a key and public requires none: choose one of them")
    access = Access.public() if public else Access.shared() if share else Access()
    listener = listen("127.0.0.1" if access.local else "0.0.0.0", port)
    try:
        return make_server(places, access), listener, access
    except BaseException:
        listener.close()
        raise


def make_server(places: Sequence[PathLike], access: "Access") -> "uvicorn.Server":
    """Return the server of a page, which logs what it cannot show.

    Raises:
        UserError: A place holds nothing to show.
    """
    import uvicorn

    from imagepriors.studio.guard import Connection
    from imagepriors.studio.server import make_app

    _limit_threads()
    contents = Contents.open(places, for_others=not access.local)
    app = make_app(contents, access)

    class Server(uvicorn.Server):
        """A server whose jobs end with it."""

        def handle_exit(self, sig: int, frame: object) -> None:
            app.state.queue.close()
            super().handle_exit(sig, frame)  # type: ignore[arg-type]

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it logs answers that it cuts off
            await super().shutdown(sockets)

    logging.getLogger("imagepriors.api.defaults").setLevel(logging.WARNING)  # logs the preset of each prior
    for problem in contents.problems:
        log.warning("%s", problem)
    return Server(
        uvicorn.Config(app, http=Connection, log_level="error", timeout_graceful_shutdown=1, limit_concurrency=512)
    )


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
    address = address_of(access, listener)
    log.info("open %s; Ctrl-C ends it", address)
    log.info(_NOTES[how])
    if browser:
        webbrowser.open(address)


def address_of(access: "Access", listener: socket.socket) -> str:
    """Return the link that opens the page."""
    key = f"?key={access.key}" if access.key else ""
    return f"http://{'127.0.0.1' if access.local else _own_address()}:{listener.getsockname()[1]}/{key}"


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
