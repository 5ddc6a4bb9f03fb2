"""count what a model costs before there is one: parameters, operations, bytes, time, energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer count llama --size 7b --tokens 2048 --train"


def count(
    model: str,
    *,
    size: str | None = None,
    tokens: int | None = None,
    batch: int = 1,
    train: bool = False,
    recompute: bool = False,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints parameters, floating-point operations and bytes by part, and the least time and energy on this machine.

    No weights are made. The speed of this machine is measured once, in about two seconds.

    Args:
        model: an architecture, the file of a recipe, a config.json, a directory, a .gguf file, a hub id, or real
            weights by name.
        size: of an architecture, e.g. 7b; tiny by default.
        tokens: of every text; by default the longest of the model, or 1024.
        batch: rows at once.
        train: also the backward pass, and the memory of a step with AdamW.
        recompute: training recomputes the activations of the blocks, which takes time and saves memory.
        dtype: of the weights.
        json: everything, as JSON.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    import torch

    from anyformer.edge.count import count as counted
    from anyformer.edge.machine import measured

    if recompute and not train:
        raise ValueError("--recompute is about the memory of training: add --train")
    shape, kind = models.outline(model, size, task, ignore), getattr(torch, dtype)
    found = counted(shape.recipe, tokens, batch, train, recompute, kind)
    machine = measured(kind)
    if json:
        more = {"machine": vars(machine), "seconds": found.least(machine), "joules": found.energy()}
        print(plain.dump({**found.to_json(), **more}))
    else:
        print(report(found, machine))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(count)


def run(args: Any) -> None:
    """Does it."""
    count(**pick(args, count))


def report(found: Any, machine: Any) -> str:
    """The counts as text for a terminal."""
    return "\n\n".join([_head(found), _parts(found), _memory(found), _passes(found, machine)])


def _head(found: Any) -> str:
    sizes = ", ".join(f"{name} {' x '.join(map(str, size))}" for name, size in found.tokens.items())
    rows = [("inputs", f"{found.batch} x ({sizes})"), ("parameters", f"{found.parameters:,}")]
    if found.active != found.parameters:
        rows.append(("active", f"{found.active:,}: those that one token meets"))
    rows.append(("embeddings", f"{found.embeddings:,}, in tables that ids look up"))
    return plain.table(rows, indent=0)


def _parts(found: Any) -> str:
    train = bool(found.backward)
    head = ("part", "parameters", "active", "forward", *(["backward"] if train else []))
    rows = [
        (name, f"{p.parameters:,}", f"{p.active:,}", flops(p.forward), *([flops(p.backward)] if train else []))
        for name, p in found.parts.items()
    ]
    total = (f"{found.parameters:,}", f"{found.active:,}", flops(found.forward))
    rows.append(("all", *total, *([flops(found.backward)] if train else [])))
    share = found.attention / max(1, found.forward)
    note = "operations (FLOP): 2 for each multiplication with its addition"
    if found.attention:
        note += (
            f";\n  {share:.1%} of forward are scores and sums of attention with masked pairs: a causal mask makes half "
            "of them useless"
        )
    return plain.table([head, *rows], right=(1, 2, 3, 4) if train else (1, 2, 3)) + f"\n  {note}"


def _memory(found: Any) -> str:
    rows = [("weights", f"{plain.size(found.weights)} in {found.dtype}")]
    if found.backward:
        rows += [
            ("gradients", plain.size(found.gradients)),
            ("optimiser", f"{plain.size(found.optimizer)}: AdamW, two float32 numbers a parameter"),
            ("activations", f"{plain.size(found.activations)} between forward and backward"),
            ("most at once", f"{plain.size(found.peak)} of tensors; a process takes more"),
        ]
    if found.state is not None:
        rows.append(("decoding state", f"{plain.size(found.state)} behind these tokens"))
    if found.decoding is not None:
        step = found.decoding
        moved = f"{plain.size(step.weights)} of weights and {plain.size(step.state)} of state"
        rows.append(("a decoded token", f"{flops(step.flops)}; reads {moved}, for {found.batch} row(s)"))
    return "bytes\n" + plain.table(rows)


def _passes(found: Any, machine: Any) -> str:
    joules = found.energy()
    rows = [("pass", "least time", "least energy (estimate)")]
    rows += [(name, seconds(value), f"{joules[name]:.2g} J") for name, value in found.least(machine).items()]
    return (
        f"on {machine}\n{plain.table(rows, right=(1, 2))}\n"
        "  time: operations at the fastest product or bytes at the fastest read, whichever takes longer\n"
        "  energy: operations x 2.3 pJ (float32; 0.75 in 16 bits) + bytes x 160 pJ: arithmetic and memory at 45 nm\n"
        "  (Horowitz, 2014); no measurement, and not of this machine"
    )


def flops(number: float) -> str:
    """Operations for people: 1.38 GFLOP."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if number < 1000:
            return f"{number:.3g} {unit}FLOP"
        number /= 1000
    return f"{number:.3g} EFLOP"


def seconds(number: float) -> str:
    """A time for people: 1.2 ms."""
    return f"{1e6 * number:.3g} us" if number < 1e-3 else f"{1e3 * number:.3g} ms" if number < 1 else f"{number:.3g} s"
