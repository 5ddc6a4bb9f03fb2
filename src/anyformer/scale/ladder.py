"""A ladder: runs of `train` of several sizes and lengths, whose losses a scaling law is fitted to.

```yaml
out: runs/ladder                # the folder of all runs
train:                          # options of `train` that all runs share
  {model: llama, size: mini, data: book.txt, tokenizer: bytes, context: 128, batch: 8}
runs:                           # options of each; nested ones are merged
  - {steps: 250, lr: 4e-3, overrides: {dim: 32, depth: 2, heads: 2, kv_heads: 2}}
  - {steps: 500, lr: 3e-3, overrides: {dim: 64, depth: 3, heads: 2, kv_heads: 2}}
```
`runs.jsonl` in the folder has a line for each finished run. A run whose options are in that file is not run again, and
one that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from anyformer.core.value import nearest
from anyformer.hub.formats.guard import atomic_write, read_bytes
from anyformer.scale.runs import LEAST
from anyformer.train import Result, train
from anyformer.train.options import TrainOptions
from anyformer.train.session import context_of
from anyformer.train.tasks.text import LONGEST

FILE = "runs.jsonl"
KEYS = ("out", "train", "runs")
OURS = ("out", "resume", "quiet")  # options of `train` that the ladder sets itself


def climb(ladder: Path, say: Callable[[str], None] = print) -> Path:
    """Trains the runs of a ladder that are not finished, in their order.

    Args:
        ladder: the YAML file. say: shows a line for each run.

    Returns:
        `runs.jsonl`: params (all), tables (of them in embeddings), tokens, loss (held out, nats a byte; a token where
        bytes are not measured), seconds, run, options.

    Raises:
        ValueError: for unknown keys or options, fewer than `LEAST` runs, two that are the same, or those of `train`.
        InterruptedError: if a signal came; what is finished is kept.
    """
    folder, runs = read(ladder)
    file = folder / FILE
    done = _finished(file)
    for number, options in enumerate(runs, 1):
        key = json.dumps(options, sort_keys=True)
        name = f"run-{number:02}"
        if key in done:
            say(f"{name}: finished before, loss {done[key]['loss']:.4f}")
            continue
        place = folder / name
        if (other := _options(place)) not in (None, options):
            raise ValueError(
                f"{place} is of a run with other options: {_changed(other or {}, options)}; choose another `out`, or "
                "delete that folder"
            )
        place.mkdir(parents=True, exist_ok=True)
        atomic_write(place / "ladder.json", key.encode())
        began = time.perf_counter()
        result = train(**options, out=place / "train", resume="auto", quiet=True)
        if result.stopped:
            raise InterruptedError(f"{name} stopped after step {result.steps}; the same command goes on from there")
        done[key] = _row(result, options, name, time.perf_counter() - began)
        atomic_write(file, "".join(json.dumps(row) + "\n" for row in done.values()).encode())
        say(f"{name}: {done[key]['params']:,} parameters, {done[key]['tokens']:,} tokens, loss {done[key]['loss']:.4f}")
    return file


def read(ladder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a ladder, and the options of its runs.

    Raises:
        ValueError: see `climb`.
    """
    try:
        content = yaml.safe_load(read_bytes(ladder, 1_000_000).decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{ladder} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
        raise ValueError(f"{ladder}: expected the keys {', '.join(KEYS)}, runs being a list; see docs/scaling.md")
    for key in content:
        if key not in KEYS:
            raise ValueError(f"{ladder}: {key}: unknown{nearest(str(key), KEYS)}; it has {', '.join(KEYS)}")
    common, known = content.get("train") or {}, [f.name for f in fields(TrainOptions)]
    runs = []
    for number, run in enumerate(content["runs"], 1):
        if not isinstance(run, dict) or not isinstance(common, dict):
            raise ValueError(f"{ladder}: train and each of runs are mappings of options; got {run!r} as run {number}")
        options = _merged(common, run)
        for name in options:
            if name in OURS or name not in known:
                why = "is set by the ladder" if name in OURS else f"is no option of train{nearest(name, known)}"
                raise ValueError(f"{ladder}, run {number}: {name} {why}")
        options = {name: float(v) if name == "lr" else v for name, v in options.items()}  # YAML reads 1e-3 as a text
        TrainOptions(**options)  # refuses values before the first run starts
        runs.append(options)
    if len(runs) < LEAST:
        raise ValueError(f"{ladder}: a ladder of {len(runs)} runs; a law of five numbers needs at least {LEAST}")
    keys = [json.dumps(options, sort_keys=True) for options in runs]
    if twice := next((i for i, key in enumerate(keys, 1) if key in keys[: i - 1]), 0):
        raise ValueError(f"{ladder}: run {twice} has the options of an earlier run; change its seed, or leave it out")
    return Path(content.get("out") or ladder.with_suffix("")), runs


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    both = {**common, **own}
    for name, value in own.items():
        if isinstance(value, dict) and isinstance(common.get(name), dict):
            both[name] = _merged(common[name], value)
    return both


def _row(result: Result, options: Mapping[str, Any], name: str, seconds: float) -> dict[str, Any]:
    made = TrainOptions(**options)
    bits, model = result.bits_per_byte, result.model
    context = context_of(model, made.context, LONGEST, 1, "")
    tables = {id(p): p.numel() for path, p in model.named_parameters() if "embed" in path.split(".")}
    return {
        "run": name,
        "params": sum(p.numel() for p in model.parameters()),
        "tables": sum(tables.values()),
        "tokens": result.steps * made.batch * made.accumulate * context,
        "loss": bits * math.log(2) if bits is not None else result.held_out,
        "seconds": round(seconds, 1),
        "options": dict(options),
    }


def _finished(file: Path) -> dict[str, dict[str, Any]]:
    """Rows of finished runs by their options."""
    if not file.exists():
        return {}
    rows = (json.loads(line) for line in file.read_text().splitlines())
    return {json.dumps(row["options"], sort_keys=True): row for row in rows}


def _options(place: Path) -> dict[str, Any] | None:
    file = place / "ladder.json"
    return json.loads(file.read_text()) if file.exists() else None


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = sorted(n for n in {*old, *new} if old.get(n) != new.get(n))
    return ", ".join(f"{n} {old.get(n)!r} there, {new.get(n)!r} here" for n in names)
