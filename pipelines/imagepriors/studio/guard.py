"""Who may open the page: this machine only, or those who know the key; and what browsers may do with it."""

import asyncio
import secrets
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors {frames}"
)
_MOST_OPEN = 64
"""Requests that are answered at the same time, those that wait in the queue among them."""
_IDLE_S = 10.0
"""Seconds in which the header of a request must arrive, after the connection or the last answer."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may open the page."""

    local: bool = True
    """Only requests to a name of this machine are answered, so that no other site can reach the page by a name of its
    own (DNS rebinding)."""
    key: str = ""
    """Key that the link must hold; empty: none is required."""
    frames: str = "'none'"
    """Sites that may show the page in a frame, as in the header Content-Security-Policy."""

    @classmethod
    def shared(cls) -> "Access":
        """Access over the network, by a link with a new key."""
        return cls(local=False, key=secrets.token_urlsafe(16))

    @classmethod
    def public(cls) -> "Access":
        """Access for everyone who reaches this machine, as in a container; Hugging Face may frame the page."""
        return cls(local=False, frames="'self' https://huggingface.co")


class Guard:
    """Middleware that refuses requests from elsewhere, and sends the headers that bind browsers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._policy = _POLICY.format(frames=access.frames)
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update({"Content-Security-Policy": self._policy, **_HEADERS})
            await send(message)

        app = self._refusal(scope, Headers(scope=scope)) or self._app
        self._open += 1
        try:
            await app(scope, receive, send_with_headers)
        finally:
            self._open -= 1

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        if self._access.local and name.lower() not in _LOCAL:
            return _error(403, f"this studio is open on its own machine only, and not as {name[:80]!r}: see --share")
        if _is_foreign(scope, headers, host):
            return _error(403, "the request comes from another page: open the studio itself")
        if self._open >= _MOST_OPEN:
            return _error(503, f"{_MOST_OPEN} requests are open already: try again in a minute")
        if "\0" in scope["path"]:
            return _error(404, "there is no such page: open the studio itself")
        cookie = f"studio-key-{(scope.get('server') or ('', ''))[1]}"  # browsers share cookies between ports
        is_known = not self._access.key or self._fits(_cookie(headers, cookie))
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if is_known and not (self._access.key and given):
            return None
        if not is_known and not self._fits(given):
            return _error(403, "open the link with the key that the terminal of the studio shows")
        home = RedirectResponse("/", 303)
        # "strict" would leave the cookie out after a link in another page, such as in a chat.
        home.set_cookie(cookie, self._access.key, httponly=True, samesite="lax", secure=scope["scheme"] == "https")
        return home

    def _fits(self, key: str) -> bool:
        return secrets.compare_digest(key.encode(), self._access.key.encode())


class Connection(H11Protocol):
    """A connection that ends when it brings no request: those of strangers could keep others out."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        """Continue after an answer."""
        self._expect_request()
        super().on_response_complete()

    def _expect_request(self) -> None:
        self.loop.call_later(_IDLE_S, self._end_if_idle, self.cycle)

    def _end_if_idle(self, last: object) -> None:
        if self.cycle is last:
            self.transport.close()


def _is_foreign(scope: Scope, headers: Headers, host: str) -> bool:
    """Whether another page makes the browser send this request. A link to the page itself is allowed."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if scope["path"] == "/" and scope["method"] in ("GET", "HEAD"):
        return False
    if site is not None:  # says the same behind a proxy that changes the name of the host
        return site not in ("same-origin", "none")
    return origin is not None and origin.partition("://")[2] != host


def _error(status: int, message: str) -> ASGIApp:
    return JSONResponse({"error": message}, status)


def _cookie(headers: Headers, name: str) -> str:
    return cookie_parser(headers.get("cookie", "")).get(name, "")
