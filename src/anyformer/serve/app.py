"""The application: routes, errors, and the guard in front of them."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from anyformer import __version__
from anyformer.explain.report import PAGE as REPORT
from anyformer.generate.tools import Tool
from anyformer.serve import documents, looking, responses
from anyformer.serve.answers import problem
from anyformer.serve.card import Served
from anyformer.serve.engine import Engine
from anyformer.serve.guard import Guard
from anyformer.serve.jobs import Refused
from anyformer.serve.routes import router

CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def application(
    engine: Engine,
    models: dict[str, Served],
    keys: Sequence[str] = (),
    hosts: tuple[str, ...] = (),
    tools: Sequence[Tool] = (),
) -> Guard:
    """The server as an ASGI application.

    Args:
        engine: started by the caller. models: by name. keys, hosts: as of `Guard`.
        tools: those that the server runs for a conversation that asks for them.
    """
    app = FastAPI(title="anyformer", version=__version__, docs_url=None, redoc_url=None)
    app.state.engine, app.state.models, app.state.born, app.state.tools = engine, models, int(time.time()), tools
    app.include_router(router)
    app.include_router(responses.router)
    app.include_router(looking.router)
    app.include_router(documents.router)
    app.state.drawn, app.state.copies = {}, {}
    page = files("anyformer.serve").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/health")
    async def health() -> JSONResponse:
        """True while requests are taken."""
        state = "draining" if engine.draining else "ok"
        return JSONResponse({"status": state}, 503 if engine.draining else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counters and times for Prometheus."""
        return PlainTextResponse(engine.measure(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(ValueError, _value)
    return Guard(app, keys, hosts, engine.limits, policy(page, REPORT.read_text(encoding="utf-8")), engine.metrics)


def policy(page: str, inside: str = "") -> str:
    """The Content-Security-Policy: the page's own script and style by their hashes, and nothing else; of a page inside,
    which the browser holds to the same policy, too."""
    hashes = {}
    for kind in ("script", "style"):
        found = re.findall(rf"<{kind}>(.*?)</{kind}>", page + inside, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
        hashes[kind] = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src 'self' data:; frame-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """422 with the first field that is wrong, 400 for what is no JSON; nothing that a user wrote is repeated."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return JSONResponse(problem(400, "the body is no valid JSON", "invalid_json"), 400)
    path = ".".join(str(step) for step in first["loc"][1:] if isinstance(step, int) or re.fullmatch(r"\w{1,40}", step))
    if first["type"] == "extra_forbidden":
        text = f"{path or 'a field'}: this server does not know the field; leave it out"
        return JSONResponse(problem(422, text, "unsupported_field", path), 422)
    text = f"{path or 'the body'}: {first['msg']}"
    return JSONResponse(problem(422, text, "invalid_field", path or None), 422)


async def _http(request: Request, error: Any) -> JSONResponse:
    status = error.status_code
    text = {404: "there is no such route", 405: "the route does not know this method"}.get(status, str(error.detail))
    return JSONResponse(problem(status, text, CODES.get(status)), status, headers=error.headers)


async def _refused(request: Request, error: Any) -> JSONResponse:
    headers = {} if error.after is None else {"Retry-After": str(error.after)}
    return JSONResponse(problem(error.status, error.message, error.code, error.param), error.status, headers=headers)


async def _value(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(problem(400, str(error)[:1000], "invalid_value"), 400)
