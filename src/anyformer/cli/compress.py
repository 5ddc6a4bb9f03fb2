"""make a model smaller, and measure what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer compress minilm --to int4 --method gptq --out runs/small"


def compress(
    model: str,
    *,
    out: str | Path,
    to: Literal["int8", "int4", "int3"],
    method: Literal["rtn", "hqq", "gptq", "awq"] = "rtn",
    group: int = 32,
    calibrate: str | Path | None = None,
    keep: Sequence[str] = (),
    max_kld: float | None = None,
    coverage: float | None = None,
    overwrite: bool = False,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Writes a smaller model that every verb reads, and prints what changed, what not and why, and the price.

    The distance to the model before is measured on text that the method has not seen, the times on this machine. Fails,
    and writes nothing, if nothing changed, less than asked, or the model moved too far.

    Args:
        model: a directory, a .gguf file, a hub id, or real weights by name.
        out: the directory to write.
        to: bits of the matrices; tables and matrices with a row for each token have 8.
        method: rtn rounds to nearest, hqq fits the zeros; gptq and awq look at inputs of a real text.
        group: inputs that share a scale and a zero.
        calibrate: a text: its first half calibrates, the second compares. By default Python's documentation.
        keep: paths of parts that stay as they are, e.g. head "**.down".
        max_kld: the largest divergence from the model before, in nats; by default 0.01, 0.1 or 0.5 for 8, 4 or 3 bits.
        coverage: the least share of the numbers of all matrices that must change, e.g. 0.95.
        overwrite: also replace what stands at out.
        json: everything, as JSON.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.compress.shrink import compress as shrink
    from anyformer.compress.shrink import free

    free(out, overwrite)
    loaded = models.load(model, text=False, task=task, ignore=ignore)
    done = shrink(loaded, out, int(to[3:]), method, group, calibrate, keep, max_kld, coverage, overwrite)
    print(plain.dump(facts(done)) if json else report(done))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(compress)


def run(args: Any) -> None:
    """Does it."""
    compress(**pick(args, compress))


def facts(done: Any) -> dict[str, Any]:
    """The result for machines."""
    return {
        "method": done.work.method, "group": done.work.group, "coverage": done.work.coverage,
        "matrices": [vars(entry) for entry in done.work.entries], "notes": done.work.notes, "folded": done.work.folded,
        "bytes": [done.before, done.after], "distance": vars(done.distance), "times": vars(done.times),
        "source": done.origin, "folder": done.folder,
    }  # fmt: skip


def report(done: Any) -> str:
    """The result for people."""
    work = done.work
    bits = sorted({e.bits for e in work.changed})
    form = f"{' and '.join(map(str, bits))} bits ({work.method}, groups of {work.group})"
    lines = [f"matrices  {len(work.changed)} of {len(work.entries)} in {form}: {work.coverage:.1%} of their numbers"]
    why: dict[str, list[str]] = {}
    for entry in work.entries:
        if entry.bits is None:
            why.setdefault(entry.why, []).append(entry.path)
    lines += [f"left      {', '.join(paths)}: {reason}" for reason, paths in why.items()]
    for path, note in work.notes.items():
        lines.append(f"note      {path} {note}")
    if work.method == "awq":
        lines.append(f"scales    folded into the part before for {len(work.folded)} of {len(work.changed)}")
    if work.errors:
        ours, plain = (sum(pair[i] for pair in work.errors.values()) for i in (0, 1))
        lines.append(f"outputs   squared error {ours / max(plain, 1e-30):.2f} of that of rounding to nearest")
    lines += [
        f"bytes     {plain.size(done.before)} -> {plain.size(done.after)}, {done.after / done.before:.1%}",
        f"distance  {done.distance}", f"time      {done.times}",
    ]  # fmt: skip
    if done.origin:
        lines.append(f"source    {done.origin}")
    return "\n".join([*lines, f"wrote     {done.folder}"])
