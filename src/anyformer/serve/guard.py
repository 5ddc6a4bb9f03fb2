"""What stands in front of every route: host, origin, key, sizes, and the headers of every answer.

```
request ── Host ── same origin ── key (constant time) ── open requests ── body's size and time ── route
```
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from anyformer.serve.answers import problem
from anyformer.serve.jobs import Refused
from anyformer.serve.limits import Limits
from anyformer.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
BODIES = ("application/json", "multipart/form-data")
DROPPED, DROP_SECONDS = 64_000_000, 2.0  # of the body of a request that is refused


class Guard:
    """An ASGI application in front of another.

    Args:
        keys: each request must bring one of them, as `Authorization: Bearer KEY`, or as the password of a browser's
            own dialogue; none = any request is taken.
        hosts: names in the Host header beside localhost and addresses (a page of another name could be made to point
            here).
        policy: the Content-Security-Policy of every answer.
    """

    def __init__(
        self, app: App, keys: Sequence[str], hosts: tuple[str, ...], limits: Limits, policy: str, metrics: Metrics
    ):
        self.app, self.limits, self.metrics = app, limits, metrics
        self.keys = [key.encode() for key in keys]
        self.hosts = {"localhost", *(host.lower() for host in hosts)}
        self.open = 0
        self.headers = [
            (name.encode(), value.encode())
            for name, value in {
                "content-security-policy": policy,
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
                "x-frame-options": "DENY",
                "cross-origin-resource-policy": "same-origin",
                "cross-origin-opener-policy": "same-origin",
                "cache-control": "no-store",
            }.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        state = {"begun": False}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["begun"] = True
                message["headers"] = [*message.get("headers", []), *self.headers]
                self.metrics.add("requests_total", 1, route=_route(scope), status=str(message["status"]))
            await send(message)

        counted = False
        try:
            self.check(scope)
            if self.open >= self.limits.requests:
                raise Refused(429, "too_many_requests", f"{self.open} requests are open; try again later", 2)
            self.open, counted = self.open + 1, True
            await self.app(scope, self._bounded(scope, receive), answer)
        except Refused as refused:
            await _drop(receive)
            await _refuse(answer, refused, scope)
        except Exception as error:  # the place is printed, the text goes nowhere: a user's could be in it
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"anyformer serve: {type(error).__name__} in {where.name}, line {where.lineno}", file=sys.stderr)
            if not state["begun"]:
                await _refuse(answer, Refused(500, "internal_error", "an error of the server"), scope)
        finally:
            self.open -= int(counted)

    def check(self, scope: Scope) -> None:
        """Raises Refused for a request that has no business here."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, path = headers.get("host", ""), scope["path"]
        name = (urlsplit(f"//{host}").hostname or "") if _whole(host) else ""
        if name not in self.hosts and not _address(name):
            raise Refused(403, "unknown_host", "the Host header names no host of this server (see --allow-host)")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        visit = scope["method"] == "GET" and path == "/"
        if (origin is not None and urlsplit(origin).netloc.lower() != host.lower()) or (
            site not in ("none", "same-origin") and not visit
        ):
            raise Refused(403, "cross_origin", "requests of other web pages are refused")
        if self.keys:
            given = _given(headers.get("authorization", ""))
            if not sum(hmac.compare_digest(given, key) for key in self.keys):  # every one is compared
                raise Refused(401, "invalid_api_key", "no key, or a wrong one: send Authorization: Bearer KEY")
            scope.setdefault("state", {})["owner"] = hashlib.sha256(given).hexdigest()
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > self.limits.body:
            raise self._large()
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind not in BODIES:
            raise Refused(400, "invalid_content_type", f"Content-Type must be {' or '.join(BODIES)}")

    def _large(self) -> Refused:
        return Refused(413, "body_too_large", f"the request has more than {self.limits.body:,} bytes")

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, with limits of the body's size and time."""
        got, whole, end = 0, False, time.monotonic() + self.limits.body_seconds

        async def bounded() -> Message:
            nonlocal got, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except TimeoutError:
                raise HTTPException(400, "the body of the request took too long") from None
            got += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if got > self.limits.body:
                if not whole:
                    await _drop(receive)
                raise HTTPException(413, self._large().message)  # FastAPI lets these pass
            return message

        return bounded


def _given(header: str) -> bytes:
    """The key in an Authorization header; empty if there is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _whole(host: str) -> bool:
    """True for a Host header of one name or address, and a port."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.netloc == host and parts.username is None and parts.port is not False
    except ValueError:
        return False


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return False


def _route(scope: Scope) -> str:
    """The route's own pattern, never what a user wrote."""
    return getattr(scope.get("route"), "path", None) or "other"


async def _drop(receive: Receive) -> None:
    """Reads the rest of a body and forgets it, for a moment: who is still writing would not see the answer."""
    dropped = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DROP_SECONDS):
            while dropped < DROPPED:
                message = await receive()
                dropped += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


async def _refuse(send: Send, refused: Refused, scope: Scope) -> None:
    body = json.dumps(problem(refused.status, refused.message, refused.code, refused.param)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.after is not None:
        headers.append((b"retry-after", str(refused.after).encode()))
    if refused.status == 401:  # the page asks for the key in the browser's own dialogue, programs are told
        visit = scope["path"] == "/"
        headers.append((b"www-authenticate", b'Basic realm="anyformer", charset="UTF-8"' if visit else b"Bearer"))
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})
