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
    msa: str | None = None,
    at: int | None = None,
    head: str | None = None,
    tolerance: float = 0.01,
    points: int = 1024,
    routers: str = "half",
    texts: str | None = None,
    out: str = "report.html",
    beside: Sequence[str] = (),
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> int:
    """Writes one HTML file that explains why the model says what it says, and prints the largest shares.

    Args:
        model: a directory, the folder of a run, a hub id, or real weights by name.
        item: a text; the file of a picture, a sound, a series, a graph (or SMILES), an episode or a protein
            (FASTA, PDB or its letters; `--for` is the number of a residue), for a model that reads one; - is a text on
            standard input.
        target: a token or a class, by default the likeliest one; "A - B" explains why A and not B. On the command line
            it is called `--for`. Of two towers (CLIP) it is the text that the picture is compared with.
        method: roles (what each head does, and whether that counts) or neurons (the units that made the answer); or the
            method of the shares: ig (integrated gradients), grad (gradient x input), occlusion, relevance
            (layer-wise, with its ledger); by default ig, and occlusion where ig is not complete, which is said.
        baseline: what stands for no information: mean, zeros, pad, blur, or a token.
        answer: what the model wrote behind the text, or of the source, before the target.
        msa: an alignment of the protein, .a3m or .sto, for a model that reads one.
        at: the position of the target, of a model with a score at each; by default the last one of a decoder. Of a
            forecast the step ahead, 0 = the next one.
        head: of a model with several heads, its name.
        tolerance: of ig: what the shares may miss, as a share of the change of the score.
        points: of ig, at most.
        routers: of experts, for relevance: half (an expert's weight and output share their product) or fixed (the
            weight is a constant).
        texts: a file of texts, with an empty line between two, where roles and neurons are looked up.
        out: the HTML file to write.
        beside: files of the same name beside it: png, a picture of it (matplotlib), and json, its numbers.
        json: print the report as JSON, without maps and pictures, and write no file.
        task: read another class of the same files.
        ignore: keys of the files that are read as if they were not there.
    """
    import sys
    from pathlib import Path

    from anyformer.core.part import check_option
    from anyformer.explain.findings import FINDINGS
    from anyformer.explain.poster import poster
    from anyformer.explain.reading import read
    from anyformer.explain.report import report
    from anyformer.explain.target import parsed

    for kind in beside:
        check_option("explain", "beside", kind, ("png", "json"))
    loaded = models.load(model, text=False, task=task, ignore=ignore)
    reading = read(loaded, sys.stdin.read().strip() if item == "-" else item, answer, parsed(target), msa)
    more = method if method in FINDINGS else None
    made = report(
        loaded, reading, parsed(target), None if more else method, name=model, baseline=_baseline(baseline), at=at,
        head=head, tolerance=tolerance, points=points, routers=routers, more=more,
        texts=_texts(texts, more),
    )  # fmt: skip
    if json:
        print(plain.dump(made.json()))
    else:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made.html(), encoding="utf-8")
        if "json" in beside:
            path.with_suffix(".json").write_text(plain.dump(made.json()) + "\n", encoding="utf-8")
        if "png" in beside:
            poster(made.data, path.with_suffix(".png"))
        print("\n".join(lines(made.data)))
        for kind in ("html", *beside):
            print(path if kind == "html" else path.with_suffix(f".{kind}"))
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
    of = "biases, positions and remainders" if "ledger" in shares else "the baseline"
    base = "" if shares["method"] == "grad" else f", of {of} {shares['base']:.4g}"
    found.append(f"score {shares['score']:.4g}{base}; shares ({shares['method']}):")
    rows = []
    for each in shares["inputs"]:
        rows += list(zip(_names(each, data["seconds"] if each["main"] else None), each["values"], strict=True))
    rows.sort(key=lambda row: -abs(row[1]))
    found.append(plain.table([(f"{value:+.3g}", name) for name, value in rows[:8]], right=(0,)))
    if "ledger" in shares:
        found += ledger(shares["ledger"], shares["score"])
    return [*found, *heads(data.get("roles", {})), *units(data.get("neurons", {}))]


def _names(unit: dict[str, Any], seconds: float | None) -> list[str]:
    """The names of the parts of an input: tokens, patches by row and column, moments of a sound, else numbers."""
    count = len(unit["values"])
    if "labels" in unit:
        return unit["labels"]
    if unit["draw"] == "grid":
        return [f"{unit['name']}, row {i // unit['columns']}, column {i % unit['columns']}" for i in range(count)]
    if seconds is not None:
        return [f"{unit['name']}, {i * seconds / count:.2f} s" for i in range(count)]
    return [f"{unit['name']} {i}" for i in range(count)]


def heads(made: dict[str, Any]) -> list[str]:
    """The heads of each role, with what is lost without them."""
    rows = [("role", "head", "share", "untrained", "without it", "without others")]
    last = ""
    for row in made.get("rows", ()):
        beside = row["beside"]
        others = f"{beside[len(beside) // 2]:+.3g}, at most {beside[-1]:+.3g}" if beside else ""
        what = row["what"] if row["what"] != last else ""
        last = row["what"]
        place = f"{row['path']} head {row['head']}"
        rows.append((what, place, f"{row['score']:.2f}", f"{row['untrained']:.2f}", f"{row['effect']:+.3g}", others))
    if len(rows) == 1:
        return []
    what = f"roles of heads on {made['read']} positions; without: {made['unit']}"
    return [what, plain.table(rows, right=(2, 3, 4))]


def units(made: dict[str, Any]) -> list[str]:
    """The neurons that made the score, what they promote and where else they are active."""
    rows = [("share", "without it", "neuron", "promotes", "suppresses", "active at")]
    for row in made.get("rows", ()):
        where = " ".join("".join(f"[{w}]" if i == c["at"] else w for i, w in enumerate(c["words"]))
                         for c in row["contexts"][:1])  # fmt: skip
        rows.append(
            (f"{row['share']:+.3g}", f"{-row['effect']:+.3g}", f"{row['path']} {row['unit']}",
             " ".join(row["promotes"][:4]), " ".join(row["suppresses"][:4]), where)
        )  # fmt: skip
    found = [] if len(rows) == 1 else ["neurons", plain.table(rows, right=(0, 1))]
    return [*found, *([made["silent"]] if made.get("silent") else [])]


def _texts(file: str | None, more: str | None) -> list[str]:
    """The texts of a file, with an empty line between two."""
    from pathlib import Path

    if file is None:
        return []
    if more is None:
        raise ValueError("--texts are where roles and neurons are looked up; add --method roles or --method neurons")
    found = [text.strip() for text in Path(file).read_text(encoding="utf-8").split("\n\n") if text.strip()]
    if not found:
        raise ValueError(f"{file} holds no text")
    return found


def ledger(made: dict[str, Any], score: float) -> list[str]:
    """The terms whose sum is the score, by part and layer."""
    kinds = list(made["added"])
    heads = ("ledger", "stream before", *kinds, "beside", "stream behind")
    lines = [heads, *((f"input {name}", "", *[""] * len(kinds), "", f"{value:+.4g}")
                      for name, value in made["inputs"].items())]  # fmt: skip
    for row in made["rows"]:
        ends = [("" if row[end] is None else f"{row[end]:+.4g}") for end in ("stream", "behind")]
        small = abs(row["beside"]) <= 1e-4 * abs(score)
        added = [f"{row['added'][kind]:+.3g}" if row["added"][kind] else "" for kind in kinds]
        lines.append((row["name"], ends[0], *added, "" if small else f"{row['beside']:+.3g}", ends[1]))
    lines.append(("sum", "", *(f"{made['added'][kind]:+.3g}" for kind in kinds), "", f"{score:+.4g}"))
    total = sum(made["inputs"].values()) + sum(made["added"].values())
    return [plain.table(lines, right=tuple(range(1, len(heads)))),
            f"inputs + all that was added = {total:.10g}; score {score:.10g}; missing {made['missing']:.2g}; "
            f"routers of experts: {made['routers']}"]  # fmt: skip


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
