"""Who may ask, and what the browser may load: in front of every route.

A page of another site can make a browser send requests here. So a request must name this server as
its host (a name that another site's owner points at 127.0.0.1 is refused), and one that changes
anything must come from this page: its `Origin` is this host, and it carries the viewer's token.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geollava.app.messages import RefusedError

TOKEN_HEADER = "x-geollava-token"
READING = ("GET", "HEAD")
HEADERS = {
    # Nothing but what this server sends: no script in the page, nothing from elsewhere.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
WRONG_PASSWORD_SECONDS = 1.0


def is_loopback(host: str) -> bool:
    """Whether a host that is listened on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(address: str) -> str:
    """The host of "host:port", without the brackets of IPv6."""
    return urlsplit(f"//{address}").hostname or ""


class Guard:
    """Refuses what does not come from this page, and says what the page may load.

    Args:
        app: what it stands before.
        local: the server listens on a loopback address, so that no other host name is meant.
    """

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            self.check(scope["method"], Headers(scope=scope))
        except RefusedError as error:
            response = JSONResponse({"error": str(error)}, error.status)
            await response(scope, receive, send_guarded)
            return
        await self.app(scope, receive, send_guarded)

    def check(self, method: str, headers: Mapping[str, str]) -> None:
        """Raises RefusedError for a host that is not ours, and for another site's requests."""
        try:
            host = headers.get("host", "")
            name = host_of(host)
            origin = urlsplit(headers.get("origin", "")).netloc
        except ValueError as error:
            raise RefusedError(400, "the host or the origin of the request is none") from error
        if not name or (self.local and not is_loopback(name)):
            raise RefusedError(403, "this server is reached as localhost or 127.0.0.1 alone")
        site = headers.get("sec-fetch-site", "none")
        if method in READING:
            # A link from elsewhere may open the page; nothing else may be asked for.
            if site not in ("none", "same-origin") and headers.get("sec-fetch-mode") != "navigate":
                raise RefusedError(403, "another site's page may not ask this server")
        elif origin != host or site not in ("none", "same-origin"):
            raise RefusedError(
                403, "a request that changes anything must come from this server's page"
            )


def check_token(headers: Mapping[str, str], token: str) -> None:
    """Raises RefusedError unless a request carries the token that its viewer's page was given."""
    if not hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), token.encode()):
        raise RefusedError(403, "the page is out of date: load it again")


class Password:
    """A password that costs a second for each wrong guess, whoever makes it.

    Args:
        password: None asks for none.
    """

    def __init__(self, password: str | None) -> None:
        self._password, self._guess = password, asyncio.Lock()

    @property
    def needed(self) -> bool:
        return self._password is not None

    async def allows(self, given: str) -> bool:
        if self._password is None:
            return True
        async with self._guess:
            right = hmac.compare_digest(given.encode(), self._password.encode())
            if not right:
                await asyncio.sleep(WRONG_PASSWORD_SECONDS)
            return right
