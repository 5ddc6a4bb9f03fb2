"""The application in this process, asked as a browser or a program asks."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from anyformer.serve.app import application
from anyformer.serve.engine import Engine


class Site:
    """`site("GET", "/v1/models")` is the answer."""

    def __init__(self, engine: tuple[Engine, dict[str, Any]], key: str | None = None, **options: Any):
        self.app = application(*engine, [] if key is None else [key], **options)

    def __call__(self, method: str, path: str, host: str = "localhost:8000", **request: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", timeout=30) as client:
                return await client.request(method, path, **request)

        return asyncio.run(ask())

    def routes(self) -> list[tuple[str, str]]:
        """Every method and path, those that are in no document, too."""
        inner: Any = self.app.app
        found, waiting = [], [inner.router]
        while waiting:
            for route in waiting.pop().routes:
                inner = getattr(route, "original_router", None) or getattr(route, "router", None)
                if inner is not None:
                    waiting.append(inner)
                elif hasattr(route, "methods"):
                    found += [(method, route.path) for method in sorted(route.methods or ["GET"])]
        return found
