"""explain an answer in one HTML file: which words or patches made it, what each layer says, who attends to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = 'anyformer explain smollm2 "The capital of France is" --for " Paris - Rome" --out report.html'


def explain(
    model: str,
    item: str,
    *,
    target: str | None = None,
    method: str | None = None,
    baseline: str = "mean",
    answer: str | None = None,
    at: int | None = None,
    head: str | None = None,
    tolerance: float = 0.01,
    points: int = 256,
    out: str = "report.html",
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> int:
    """Writes one HTML file that explains why the model says what it says, and prints the largest shares.

    Args:
        model: a directory, the folder of a run, a hub id, or real weights by name.
        item: a text; the file of a picture, a sound or a series, for a model that reads one; - is a text on standard
            input.
        target: a token or a class, by default the likeliest one; "A - B" explains why A and not B. On the command line
            it is called `--for`.
        method: of the shares: ig (integrated gradients), grad (gradient x input), occlusion; by default ig, and
            occlusion where ig is not complete, which is said.
        baseline: what stands for no information: mean, zeros, pad, blur, or a token.
        answer: what the model wrote behind the text, or of the source, before the target.
        at: the position of the target, of a model with a score at each; by default the last one of a decoder. Of a
            forecast the step ahead, 0 = the next one.
        head: of a model with several heads, its name.
        tolerance: of ig: what the shares may miss, as a share of the change of the score.
        points: of ig, at most.
        out: the HTML file to write.
        json: print the report as JSON, without maps and pictures, and write no file.
        task: read another class of the same files.
        ignore: keys of the files that are read as if they were not there.
    """
    import sys
    from pathlib import Path

    from anyformer.explain.reading import read
    from anyformer.explain.report import report
    from anyformer.explain.target import parsed

    loaded = models.load(model, text=False, task=task, ignore=ignore)
    reading = read(loaded, sys.stdin.read().strip() if item == "-" else item, answer)
    made = report(
        loaded, reading, parsed(target), method, name=model, baseline=_baseline(baseline), at=at, head=head,
        tolerance=tolerance, points=points,
    )  # fmt: skip
    if json:
        print(plain.dump(made.json()))
    else:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made.html(), encoding="utf-8")
        print("\n".join(lines(made.data)))
        print(path)
    if note := made.data["attribution"].get("note"):
        print(note, file=sys.stderr)
    for why in made.failed:
        print(f"not in the report: {why}", file=sys.stderr)
    return 1 if made.attribution is None else 0


def lines(data: dict[str, Any]) -> list[str]:
    """The target, the likeliest answers, and the largest shares, for a terminal."""
    said = ", ".join(f"{name} {share:.1%}" for name, share in data["said"][:3])
    found = [*([f"says: {said}"] if said else []), f"explained: {data['target']}"]
    shares = data["attribution"]
    if "error" in shares:
        return found
    found.append(f"score {shares['score']:.4g}, of the baseline {shares['base']:.4g}; shares ({shares['method']}):")
    rows = []
    for each in shares["inputs"]:
        names = each.get("labels") or [f"{each['name']} {i}" for i in range(len(each["values"]))]
        rows += list(zip(names, each["values"], strict=True))
    rows.sort(key=lambda row: -abs(row[1]))
    return [*found, plain.table([(f"{value:+.3g}", name) for name, value in rows[:8]], right=(0,))]


def _baseline(text: str) -> Any:
    """A baseline by name; an id stays a number."""
    return int(text) if text.isdecimal() else text


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(explain, skip=("target",))
    text = 'a token or a class, by default the likeliest one; "A - B" explains why A and not B'
    parser.add_argument("--for", dest="target", type=str | None, default=None, help=text)


def run(args: Any) -> int:
    """Does it."""
    return explain(**pick(args, explain))
