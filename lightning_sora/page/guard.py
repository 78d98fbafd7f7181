"""Guard: what the server of the page sends, and to whom."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

#: What a browser may load for the page: what this server sends, and nothing from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; frame-ancestors 'none'; form-action 'self'"
)
#: Paths by which gradio would read from another server.
FETCHES = re.compile(r"file=/*[a-z+]+:|/proxy=")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _is_of_loopback(origin: bytes) -> bool:
    try:
        return is_loopback(urlsplit(origin.decode("latin-1")).hostname or "")
    except ValueError:
        return False


class Guard:
    """Lets no answer make a browser load from elsewhere, and no request make this server do so.

    A page that only this machine may see is refused by any other name, as under one a foreign site could reach it, and
    to what a browser sends for a foreign site.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], loopback: bool) -> None:
        self.app, self.loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        name = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0]
        origin = headers.get(b"origin")  # of the page by which a browser was told to ask
        foreign = self.loopback and not (is_loopback(name) and (origin is None or _is_of_loopback(origin)))
        if foreign or FETCHES.search(scope["path"].lower()):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not served here"})
            return None

        async def guarded(message: Scope) -> None:
            if message["type"] == "http.response.start":
                told = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", ()), *told]
            await send(message)

        return await self.app(scope, receive, guarded)
