"""serve models over OpenAI's protocol, with a page to talk to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anyformer.cli import models
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer serve smollm2 --port 8000"
KEY = "ANYFORMER_API_KEY"


def serve(
    model: list[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: str | None = None,
    allow_host: Sequence[str] = (),
    exact: bool = False,
    tools: Sequence[str] = (),
    steer: Sequence[str] = (),
    rows: int = 8,
    waiting: int = 256,
    new_tokens: int = 4096,
    seconds: float = 600.0,
    body: int = 8_000_000,
    drain: float = 30.0,
    prefix_cache: int = 0,
    task: str | None = None,
    ignore: Sequence[str] = (),
    engine: Literal["auto", "torch", "onnx"] = "torch",
    precision: Literal["auto", "float32", "int8", "int4"] = "auto",
) -> None:
    """Serves models until Ctrl-C or SIGTERM: OpenAI's routes under /v1, and a page at /.

    Args:
        model: a directory, a .gguf file, a hub id, or real weights by name; one or several.
        host: the address to listen on; another one than this machine's own needs a key.
        port: 0 = any free one, which is printed.
        api_key_file: a file with keys, a line each; every request must bring one of them. By default the variable
            ANYFORMER_API_KEY.
        allow_host: names by which browsers reach the server, beside localhost and addresses.
        exact: each request decodes in a batch of its own: bit for bit the text that it gets alone.
        tools: functions that the server runs for conversations that ask for them: calculator, and search=INDEX, a
            folder that `anyformer index` made.
        steer: files of directions that `anyformer steer` wrote for this model, FILE or FILE:STRENGTH; they are added
            to all that it computes.
        rows: texts that a model writes at once.
        waiting: texts that may wait; more are refused with 429.
        new_tokens: the most new tokens of a text.
        seconds: the most time of a text, its waiting included.
        body: the most bytes of a request.
        drain: seconds that answers have to end after SIGTERM.
        prefix_cache: bytes of memory for beginnings of prompts, which the same key then reads only once; 0 = none.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
        engine: what computes the steps: PyTorch, ONNX Runtime (docs/engine.md), or auto, ONNX Runtime if it can.
        precision: of the matrices in ONNX Runtime; auto is 4 bits for weights from a file of 4 bits, else 8.
    """
    from anyformer.data.models import find
    from anyformer.generate.engine import with_engine
    from anyformer.generate.steering import steered_always
    from anyformer.serve import serve as run
    from anyformer.serve.limits import Limits
    from anyformer.serve.server import check_keys

    limits = Limits(
        rows=rows, waiting=waiting, new_tokens=new_tokens, seconds=seconds, body=body, drain=drain, prefix=prefix_cache
    )
    keys = [os.environ[KEY]] if KEY in os.environ else []
    if api_key_file is not None:
        keys = Path(api_key_file).expanduser().read_text(encoding="utf-8").split("\n")
        keys = [key.strip() for key in keys if key.strip()] or [""]
    check_keys(host, keys)
    loaded = [models.load(name, text=False, task=task, ignore=ignore) for name in model]
    loaded = [with_engine(one.eval(), engine, precision) for one in loaded]
    if steer and len(model) > 1:
        raise ValueError(f"--steer: a direction is one model's, and {len(model)} are served; serve each by itself")
    loaded = [steered_always(one, list(steer)) for one in loaded]
    places = [find(name) for name in model]
    run(
        loaded, model, places=places, host=host, port=port, key=keys, allow_host=allow_host, exact=exact, tools=tools,
        limits=limits,
    )  # fmt: skip


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(serve)


def run(args: Any) -> None:
    """Does it."""
    serve(**pick(args, serve))
