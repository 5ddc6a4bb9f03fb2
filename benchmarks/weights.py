"""The published weights that `decode` and `load` use: a GGUF file, and the same weights as a safetensors directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT, Missing, Worker

FOLDER = ROOT / "runs" / "benchmarks"
WITH_TOKENIZER, BARE = FOLDER / "smollm2", FOLDER / "smollm2-bare"  # the second: the model without its tokenizer
PROMPT = 512


def prepared() -> dict[str, Any]:
    """Makes the directories and says what is in them; the work is done in a process of its own.

    Raises:
        Missing: if the weights cannot be fetched.
    """
    worker = Worker("weights", "smollm2")
    worker.close()
    return worker.facts


def facts() -> dict[str, Any]:
    """What `prepared` said: `gguf` (path) and `gguf_bytes`, the numbers of `parameters` and of those in the token
    `table`, `prompt` (ids of `PROMPT` tokens of English)."""
    return json.loads((FOLDER / "facts.json").read_text())


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """The conversion, in the process of `prepared`."""
    from pydoc_data.topics import topics

    import anyformer as af
    from anyformer.data import sources

    try:
        gguf = Path(sources.get(name))
    except OSError as error:
        raise Missing(f"the weights of {name} are not to be had: {error}") from error
    model = af.load(gguf)
    shutil.rmtree(FOLDER, ignore_errors=True)
    model.save(WITH_TOKENIZER)
    BARE.mkdir()
    for file in ("config.json", "model.safetensors"):
        (BARE / file).hardlink_to(WITH_TOKENIZER / file)
    facts = {
        "gguf": str(gguf),
        "gguf_bytes": gguf.stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "table": model.embed.tokens.weight.numel(),
        "prompt": model.tokenizer.encode(topics["compound"])[:PROMPT],
    }
    assert len(facts["prompt"]) == PROMPT
    (FOLDER / "facts.json").write_text(json.dumps(facts))
    return facts, lambda request: {}
