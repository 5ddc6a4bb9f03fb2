"""The weights that benchmarks of use read: a GGUF file, and the same as a safetensors directory; SmolLM2 and Gemma 3
as published, and a new Mamba of the published 130 M shape, which has a directory alone."""

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
NEW = {"mamba": "130m"}  # page -> size of what has random weights


def bare(name: str) -> Path:
    """The directory of a model without its tokenizer."""
    return FOLDER / f"{name}-bare"


def prepared(name: str = "smollm2") -> dict[str, Any]:
    """Makes the directories and says what is in them; the work is done in a process of its own.

    Raises:
        Missing: if the weights cannot be fetched.
    """
    worker = Worker("weights", name)
    worker.close()
    return worker.facts


def facts(name: str = "smollm2") -> dict[str, Any]:
    """The answer of `prepared`: `gguf` (the path, of a new model that of its directory) and `gguf_bytes`, the numbers
    of `parameters` and of those in the token `table`, `prompt` (ids of `PROMPT` tokens of English)."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """The conversion, in the process of `prepared`."""
    from pydoc_data.topics import topics

    import anyformer as af
    from anyformer.data import sources
    from anyformer.hub.text.tokenizer import Tokenizer

    try:
        file = None if name in NEW else Path(sources.get(name))
    except OSError as error:
        raise Missing(f"the weights of {name} are not to be had: {error}") from error
    model = af.build(name, NEW[name], seed=0) if file is None else af.load(file)
    if file is None:
        model.tokenizer = Tokenizer.bytes_level()
    for folder in (FOLDER / name, bare(name)):
        shutil.rmtree(folder, ignore_errors=True)
    model.save(FOLDER / name)
    bare(name).mkdir()
    for part in ("config.json", "model.safetensors"):
        (bare(name) / part).hardlink_to(FOLDER / name / part)
    path = file or bare(name)
    facts = {
        "gguf": str(path),
        "gguf_bytes": (file or path / "model.safetensors").stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "table": model.embed.tokens.weight.numel(),
        "prompt": model.tokenizer.encode(topics["compound"])[:PROMPT],
    }
    assert len(facts["prompt"]) == PROMPT
    (FOLDER / f"{name}.json").write_text(json.dumps(facts))
    return facts, lambda request: {}
