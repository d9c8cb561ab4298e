"""Who may open the page: this machine only, or those who know the key; and what browsers may do with it."""

import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_COOKIE = "studio-key"
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors {frames}"
)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may open the page."""

    local: bool = True
    """Only requests to a name of this machine are answered, so that no other site can reach the page by a name of its
    own (DNS rebinding)."""
    key: str = ""
    """Key that the link must hold; empty: none is required."""
    frames: str = field(default="'none'")
    """Sites that may show the page in a frame, as in the header Content-Security-Policy."""

    @classmethod
    def shared(cls) -> "Access":
        """Access over the network, by a link with a new key."""
        return cls(local=False, key=secrets.token_urlsafe(16))


class Guard:
    """Middleware that refuses requests from elsewhere, and sends the headers that bind browsers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        policy = _POLICY.format(frames=self._access.frames)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                sent["Content-Security-Policy"] = policy
                sent["X-Content-Type-Options"] = "nosniff"
                sent["Referrer-Policy"] = "no-referrer"
                sent["Cache-Control"] = "no-store"
            await send(message)

        refusal = self._refusal(scope, headers)
        app: ASGIApp = self._app if refusal is None else refusal
        return await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        if self._access.local and name not in _LOCAL:
            return _error(403, f"this studio is open on its own machine only, and not as {name!r}: see --share")
        if origin is not None and origin.partition("://")[2] != host:
            return _error(403, "the request comes from another page: open the studio itself")
        if not self._access.key or secrets.compare_digest(_cookie(headers).encode(), self._access.key.encode()):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if not secrets.compare_digest(given.encode(), self._access.key.encode()):
            return _error(403, "open the link with the key that the terminal of the studio shows")
        home = RedirectResponse("/", 303)
        home.set_cookie(_COOKIE, self._access.key, httponly=True, samesite="strict")
        return home


def _error(status: int, message: str) -> ASGIApp:
    return JSONResponse({"error": message}, status)


def _cookie(headers: Headers) -> str:
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[_COOKIE].value if _COOKIE in cookies else ""
