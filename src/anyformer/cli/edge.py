"""design a small model for a budget of bytes and milliseconds, and write it."""

from __future__ import annotations

import re
import sys
from typing import Any, Literal

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer edge --task reviews.csv --metric pearson --size 3MB --latency 2ms --teacher minilm --out runs/edge"
BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30, "b": 1, "": 1}
MILLISECONDS = {"us": 1e-3, "ms": 1, "s": 1e3, "": 1}
INFEASIBLE = 3


def edge(
    *,
    task: str,
    size: str,
    latency: str,
    metric: Literal["accuracy", "f1", "pearson", "spearman", "bits"] = "accuracy",
    out: str = "edge",
    memory: str | None = None,
    target: str = "onnx",
    threads: int = 1,
    tokens: int = 64,
    side: int | None = None,
    seconds: int | None = None,
    test: str | None = None,
    coverage: float = 0.9,
    products: Literal["float32", "int8"] = "float32",
    hours: float = 0.5,
    teacher: str | None = None,
    more: int = 4,
    model: str = "bert",
    of: str = "mini",
    space: dict[str, list[Any]] | None = None,
    trials: int = 200,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Searches the recipes of an architecture for the best model within a budget, measured here, and writes it.

    OUT/model is what is deployed: a graph, a tokenizer or the steps of pictures or sounds, a script of 40 lines.
    OUT/front.html shows all that was found. A killed run goes on; several processes with one OUT share the search. Exit
    code 3: nothing fits; the nearest two are named.

    Args:
        task: rows with `text`, `image` or `sound`, and `label`: a .jsonl, .csv, .tsv or .parquet file; a folder of
            pictures or sounds, CLASS/NAME.png or CLASS/NAME.wav; or running text: a .txt file, or rows with `text`.
        size: of all files of the artefact, e.g. 4MB or 500kB.
        latency: of one text of `tokens` tokens, of one pass over `tokens` bytes of running text, of one picture or
            sound, e.g. 5ms.
        metric: what counts; pearson and spearman are for labels that are numbers, bits (for each byte) is for running
            text, which a decoder continues.
        out: the folder.
        memory: that the loaded model may add to a process, e.g. 64MB.
        target: what runs it: onnx (ONNX Runtime), executorch (on phones: fixed sizes, products by XNNPACK), torch (a
            .pt2 program), or gguf (llama.cpp; running text alone).
        threads: of the runtime, and of the search.
        tokens: of the longest text; of running text, the bytes of a piece.
        side: height and width of pictures in pixels; by default the shorter edge of the first.
        seconds: of sounds, longer ones are cut; by default those of the longest, rounded up.
        test: rows that are looked at once, of another voice or writer; by default a tenth of the task's.
        products: of the file's matrices in few bits: float32, or int8 where that is faster and the answers stay.
        coverage: the least share of the numbers of all matrices that must be in few bits, e.g. 0.8; with executorch of
            the products that XNNPACK must take.
        hours: of computing, without the table of the device and the export of the best eight, about a minute each.
        teacher: a model of texts to learn from, e.g. minilm; without a head for the task it learns that first, if there
            is time.
        more: pieces of each text that the teacher reads besides.
        model: the architecture whose paths are searched: an encoder of texts, of pictures, e.g. vit, or of sounds, e.g.
            wav2vec2, which then reads log-mel features; for running text a decoder, e.g. llama.
        of: its size, for what is not searched.
        space: other values of the search, e.g. --space.dim "[64, 96]" --space.mixer "[own, convolution]".
        trials: models that are looked at, at most.
        seed: of all draws.
        json: the report, as JSON.
    """
    from anyformer.edge.finish import designed
    from anyformer.edge.wish import Wish

    limit = None if memory is None else int(amount("memory", memory, BYTES))
    wish = Wish(
        task, metric, int(amount("size", size, BYTES)), amount("latency", latency, MILLISECONDS), limit,
        target, threads, tokens, side, hours, model, of, teacher, more, space, trials, seed, seconds, test, coverage,  # type: ignore[arg-type]
        products,
    )  # fmt: skip
    wish.check()
    loaded = None if teacher is None else models.load(teacher, text=False)
    done = designed(wish, out, loaded, lambda line: print(line, file=sys.stderr, flush=True))
    print(plain.dump(done) if json else report(done, out))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(edge)


def run(args: Any) -> int | None:
    """Does it; the exit code is 3 if nothing fits."""
    from anyformer.edge.design import Infeasible

    try:
        edge(**pick(args, edge))
    except Infeasible as nothing:
        print(f"anyformer edge: {nothing}", file=sys.stderr)
        return INFEASIBLE
    return None


def amount(name: str, text: str, units: dict[str, float]) -> float:
    """A number with a unit; without one in bytes or milliseconds."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", str(text))
    try:
        if found is None or found[2].lower() not in units:
            raise ValueError
        return float(found[1]) * units[found[2].lower()]
    except ValueError:
        known = ", ".join(unit for unit in units if unit)
        raise ValueError(
            f"--{name} is a number and a unit ({known}), e.g. 4{next(iter(units))}; got {text!r}"
        ) from None


def report(done: dict[str, Any], out: str) -> str:
    """The result for people."""
    chosen, wish, (low, high) = done["chosen"], done["wish"], done["interval"]
    used = ", ".join(f"{share:.0%} of the {name}" for name, share in done["used"].items())
    times = "; ".join(f"{p50:.3f} ms, {p95:.3f} ms at the 95th percentile" for p50, p95, _ in chosen["real"])
    lines = [
        f"{wish['metric']:<10}{done['value']:.4f} (95 %: {low:.4f} to {high:.4f}) on {done['rows']['test']:,} "
        f"{done['rows_are']} not seen before; {done['float32']:.4f} in float32",
        f"size      {plain.size(chosen['real_size'])} of {plain.size(wish['size'])}, {done['parameters']:,} parameters",
        f"latency   {times}",
        f"machine   {done['machine']}",
        f"table     median error {done['table']['error']:.1%} on what was measured",
        f"file      differs from the model by {done['difference']:.1e} on real {done['rows_are']} of odd sizes",
        f"few bits  {done['covered']:.1%} of the numbers of the matrices; they move the answers by {done['lost']:.2g}",
        f"products  {done['products']}",
        f"used      {used}",
        f"recipe    {done['recipe']}",
        f"wrote     {out}/model, {out}/front.html",
    ]  # fmt: skip
    if done.get("lost_of_rows"):
        lines.insert(1, f"rows      {done['lost_of_rows']}")
    if done.get("delegated"):
        (taken, products), (inside, nodes) = done["delegated"], done["nodes"]
        lines.insert(-2, f"delegate  takes {taken} of {products} products, {inside} of {nodes} nodes")
    if done["teacher"] is not None:
        lines.insert(1, f"teacher   {done['teacher']:.4f}: {done['value'] / done['teacher']:.1%} of it is kept")
    return "\n".join(lines)
