"""Guard: whom the server of the page answers."""

import asyncio
from typing import Any

import pytest

from lightning_sora.page.guard import Guard


@pytest.mark.parametrize("loopback", [True, False])
def test_what_a_foreign_site_has_a_browser_ask_is_refused(loopback: bool) -> None:
    """A form of another site can be sent to any address, uploads too."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    def answered(**headers: str) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        told = [(name.encode(), value.encode()) for name, value in {"host": "127.0.0.1:7860", **headers}.items()]
        asyncio.run(Guard(app, loopback)({"type": "http", "path": "/upload", "headers": told}, None, send))  # type: ignore[arg-type]
        return int(sent[0]["status"])

    for origin in ("http://127.0.0.1:7860", "http://localhost:7860", "http://[::1]:7860"):
        assert answered(origin=origin) == 200
    for origin in ("https://elsewhere.example", "null", "http://[", "http://127.0.0.1.elsewhere.example"):
        assert answered(origin=origin) == (403 if loopback else 200)
    assert answered() == 200
    assert answered(host="elsewhere.example:7860") == (403 if loopback else 200)
