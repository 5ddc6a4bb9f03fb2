"""make a model smaller, and measure what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

BATCH = 16  # examples of the task at once
EXAMPLE = "anyformer compress minilm --to int4 --method gptq --out runs/small"


def compress(
    model: str,
    *,
    out: str | Path,
    to: Literal["int8", "int4", "int3"] | None = None,
    method: Literal["rtn", "hqq", "gptq", "awq", "signround"] = "rtn",
    group: int = 32,
    zeros: Literal["any", "whole"] = "any",
    finer: float = 0.0,
    form: Literal["folder", "gptq"] = "folder",
    prune: Sequence[str] = (),
    factor: int | None = None,
    heal: int = 0,
    distil: str | None = None,
    calibrate: str | Path | None = None,
    data: str | Path | None = None,
    fields: Mapping[str, str] | None = None,
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
        to: bits of the matrices; tables of tokens, and heads with a row for each, have 8.
        method: rtn rounds to nearest, hqq fits the zeros; gptq, awq and signround look at inputs of a real text, and
            signround learns from them, which takes longest.
        group: inputs that share a scale and a zero.
        zeros: whole: zeros are whole numbers, as `anyformer convert --to onnx` needs them.
        finer: a share, e.g. 0.2: matrices that move the model most have 8 bits, while all are at most so much larger.
        form: folder: anyformer's own; gptq: a Hugging Face directory in GPTQ's layout, which engines of others read.
        prune: what to remove: heads=25%, ffn=50% and depth=2 for real; weights=50% and 2:4 set weights to 0.
        factor: linear layers become products of two thin matrices of this rank.
        heal: steps of learning from the model before, after pruning.
        distil: a model to learn from instead, with the same tokens.
        calibrate: a text: its first half calibrates, the second compares. By default Python's documentation.
        data: examples of the model's task, as `anyformer finetune` takes them, which it has not learned from: how well
            it does them is printed, before and after.
        fields: renamed columns of the data, e.g. --fields.text review.
        keep: paths of parts whose matrices stay as they are, e.g. head "**.down".
        max_kld: the largest divergence from the model before, in nats; by default 0.01, 0.1 or 0.5 for 8, 4 or 3 bits.
        coverage: the least share of the numbers of all matrices that must be in few bits, e.g. 0.95.
        overwrite: also replace what stands at out.
        json: everything, as JSON.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.compress.shrink import Wish, free
    from anyformer.compress.shrink import compress as shrink
    from anyformer.train.measured import measured

    bits = None if to is None else int(to[3:])
    wish = Wish(bits, method, group, prune, factor, heal, keep, max_kld, coverage, zeros == "whole", form, finer)
    if distil is not None and not heal:
        raise ValueError("--distil is learned from: add --heal with the number of steps, e.g. --heal 500")
    wish.check()
    free(out, overwrite)
    loaded = models.load(model, text=False, task=task, ignore=ignore)
    teacher = None if distil is None else models.load(distil, text=False)
    goal = None if data is None else measured(loaded, data, fields)
    measure = None if goal is None else lambda one: goal.measure(one.eval(), BATCH)
    done = shrink(loaded, out, wish, calibrate, teacher, overwrite, measure)
    print(plain.dump(facts(done)) if json else report(done, goal))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(compress)


def run(args: Any) -> None:
    """Does it."""
    compress(**pick(args, compress))


def facts(done: Any) -> dict[str, Any]:
    """The result for machines."""
    work = done.work
    found = {} if work is None else {
        "method": work.method, "group": work.group, "coverage": work.coverage,
        "matrices": [vars(entry) for entry in work.entries], "notes": work.notes, "folded": work.folded,
    }  # fmt: skip
    if done.healed is not None:
        steps, first, last = done.healed
        found["healed"] = {**vars(steps), "before": vars(first), "after": vars(last)}
    return {
        **found, "cuts": [vars(cut) for cut in done.cuts], "parameters": done.parameters,
        "bytes": [done.before, done.after], "distance": vars(done.distance), "times": vars(done.times),
        "measured": done.measured,
        "source": done.origin, "folder": done.folder,
    }  # fmt: skip


def report(done: Any, goal: Any) -> str:
    """The result for people.

    Args:
        goal: the task whose measure was taken before and after; None: none.
    """
    lines = [line for cut in done.cuts for line in _cut(cut)]
    lines += [] if done.work is None else _bits(done.work)
    if done.parameters[0] != done.parameters[1]:
        lines.append(f"numbers   {done.parameters[0]:,} -> {done.parameters[1]:,}")
    lines.append(f"bytes     {plain.size(done.before)} -> {plain.size(done.after)}, {done.after / done.before:.1%}")
    if done.packed is not None:
        lines.append(f"zeros     no faster and no smaller here; {plain.size(done.packed)} behind zlib")
    if done.healed is not None:
        steps, first, last = done.healed
        lines.append(f"healed    {steps}; KLD {first.kld:.3g} -> {last.kld:.3g}")
    lines += [f"distance  {done.distance}", f"time      {done.times}"]
    if goal is not None:
        one, two = done.measured
        lines.append(f"{goal.name:<9} {one:.4f} -> {two:.4f} {goal.unit} ({goal.size:,} examples)")
    lines += [f"source    {done.origin}"] if done.origin else []
    return "\n".join([*lines, f"wrote     {done.folder}"])


def _cut(cut: Any) -> list[str]:
    ways: dict[str, list[str]] = {}
    for path, what in cut.changed.items():
        ways.setdefault(what, []).append(path)
    count = len(cut.changed)
    lines = [f"{cut.rule:<9} {count} of {count + len(cut.left)} parts"]
    lines += [f"          {', '.join(paths)}: {what}" for what, paths in ways.items()]
    return lines + _left(cut.left)


def _bits(work: Any) -> list[str]:
    bits = sorted({e.bits for e in work.changed})
    form = f"{' and '.join(map(str, bits))} bits ({work.method}, groups of {work.group})"
    count = f"{len(work.changed)} of {len(work.entries)}"
    lines = [f"matrices  {count} in {form}: {work.coverage:.1%} of their numbers"]
    lines += _left({e.path: e.why for e in work.entries if e.bits is None})
    lines += [f"note      {path} {note}" for path, note in work.notes.items()]
    if work.method == "awq":
        lines.append(f"scales    folded into the part before for {len(work.folded)} of {len(work.changed)}")
    if work.errors:
        ours, near = (sum(pair[i] for pair in work.errors.values()) for i in (0, 1))
        lines.append(f"outputs   squared error {ours / max(near, 1e-30):.2f} of that of rounding to nearest")
    return lines


def _left(left: dict[str, str]) -> list[str]:
    """A line for each reason."""
    why: dict[str, list[str]] = {}
    for path, reason in left.items():
        why.setdefault(reason, []).append(path)
    return [f"left      {', '.join(paths)}: {reason}" for reason, paths in why.items()]
