"""One model trained on text and evaluated, at the length it was trained with and at longer ones: bits per byte.

The text is the reference inside every CPython (`pydoc`), as bytes; its last tenth is held out. At a length T the
held-out text is read in windows of T that overlap by half, and what counts are the bytes that see at least T / 2
before them: the same bytes at every length. B batch, T time.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.init import initialise
from anyformer.core.recipe import Recipe
from anyformer.data import sources, text
from anyformer.train import Settings, fit, objectives
from benchmarks.quality_models import BYTES, CONTEXT, GROUPS, MASK, Variant, fitted, scaling

STEPS, BATCH, LR, WARMUP = 800, 2, 3e-3, 80
HELD_OUT = 32_768  # bytes that are evaluated
LENGTHS = (1, 2, 4, 8)  # times CONTEXT
HIDDEN = 0.15  # the share of bytes that an encoder has to say
SETUP = {"steps": STEPS, "batch": BATCH, "lr": LR, "warmup": WARMUP, "context": CONTEXT, "held_out": HELD_OUT}


def one(group: str, name: str, seed: int) -> dict[str, Any]:
    """Trains and evaluates a row of a group."""
    v = GROUPS[group][name]
    recipe, began = fitted(v), time.perf_counter()
    model = recipe.build()
    initialise(model, seed=seed)
    learn, held_out = (np.frombuffer(t.encode("ascii", "replace"), np.uint8) for t in text.split(sources.text("pydoc")))
    windows: Callable[[int], dict[str, Tensor]] = text.Windows(learn, BATCH, CONTEXT, seed)
    settings = Settings(steps=STEPS, lr=LR, warmup=WARMUP, seed=seed, log_every=STEPS)
    objective = objectives.masked_lm if v.encoder else objectives.causal_lm
    batches = masked(windows, seed) if v.encoder else windows
    with tempfile.TemporaryDirectory() as folder:
        fit(model, batches, objective, settings, folder)
    trained = time.perf_counter() - began
    model.eval()
    bits = {str(times): evaluated(model, v, held_out, times) for times in LENGTHS}
    scaled = {
        way: {str(times): evaluated(stretched(model, recipe, way, times), v, held_out, times) for times in LENGTHS[1:]}
        for way in v.scalings
    }
    size = sum(p.numel() for p in model.parameters())
    return {
        "parameters": size, "seconds": trained, "bits": bits, "scaled": scaled, "recipe": repr(recipe), "seed": seed,
        "setup": SETUP,
    }  # fmt: skip


def masked(windows: Callable[[int], dict[str, Tensor]], seed: int) -> Callable[[int], dict[str, Tensor]]:
    """Batches for an encoder: `HIDDEN` of the bytes are replaced by MASK, and are the labels."""

    def batch(number: int) -> dict[str, Tensor]:
        return hide(windows(number)["input_ids"], seed * 1_000_003 + number)

    return batch


def hide(ids: Tensor, seed: int) -> dict[str, Tensor]:
    """Inputs and labels of (B, T) bytes."""
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < HIDDEN
    return {"input_ids": ids.masked_fill(chosen, MASK), "labels": ids.masked_fill(~chosen, objectives.IGNORE)}


@torch.no_grad()
def evaluated(model: Any, v: Variant, held_out: np.ndarray, times: int) -> float | None:
    """Bits a byte at `times` the trained length; None where the model was not built for it."""
    nats, count = 0.0, 0
    try:
        for batch in _rows(v, held_out[:HELD_OUT], times * CONTEXT):
            labels = batch["labels"]
            logits = model(batch["input_ids"]).logits  # (B, T, V)
            nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
            count += int(objectives.counted(labels))
    except (ValueError, IndexError):  # a table of places ends, a projection has no rows for them
        return None
    return nats / count / math.log(2)


def _rows(v: Variant, ids: np.ndarray, time: int) -> Iterator[dict[str, Tensor]]:
    if not v.encoder:
        yield from text.sliding(ids, time, max(1, 4096 // time))
        return
    whole = torch.from_numpy(ids[: len(ids) // time * time].astype(np.int64)).view(-1, time)
    for i, row in enumerate(whole.split(max(1, 4096 // time))):
        yield hide(row, 977 + i)


def stretched(model: Any, recipe: Recipe, way: str, times: int) -> Any:
    """The same weights with a rotary scaling."""
    paths = {f"blocks.{i}.mixer.positions.scaling": scaling(way, times) for i in range(len(model.blocks))}
    other = recipe.but(paths).build()
    other.load_state_dict(model.state_dict())
    return other.eval()


assert MASK == BYTES
