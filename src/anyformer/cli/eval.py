"""measure a model on a file of yours, with intervals: perplexity, choices, classes, answers, bias, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer eval smollm2 questions.jsonl --shots 4 --from train.jsonl --out results.json"


def evaluate(
    model: str,
    file: str,
    *,
    task: Literal[
        "auto", "perplexity", "classification", "choice", "generation", "weat", "templates", "calibration"
    ] = "auto",
    shots: int = 0,
    seed: int = 0,
    examples: str | None = None,
    template: str | None = None,
    separator: str = " ",
    fields: dict[str, str] | None = None,
    window: int | None = None,
    stride: int | None = None,
    max_new_tokens: int = 64,
    regex: str | None = None,
    against: str | None = None,
    out: str | None = None,
    json: bool = False,
    overrides: dict[str, Any] | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the figures of a model on a file.

    Args:
        model: real weights by name, a directory, the folder of a run, a .gguf file, or a hub id.
        file: .jsonl, .csv, .parquet: text, choices and label; text and label; prompt and response; first and second;
            or text. A .txt file or a folder of them: documents. Of weat a YAML or JSON file of words.
        task: auto = by the columns. weat: associations of words; templates: pairs of sentences; calibration: confidence
            against truth.
        shots: examples in front of each item, never the item itself.
        seed: of the examples and of random samples.
        examples: a file of examples, in the same form; by default the file itself. Baselines learn from it.
        template: around the text of an item, e.g. "Review: {text}\\nClass:"; \\n is a line break.
        separator: in front of an answer.
        fields: columns that have other names: --fields.text question.
        window: tokens of a window, of perplexity; by default the context, at most 1,024.
        stride: tokens from one window to the next; by default half a window.
        max_new_tokens: the most tokens of a generated answer.
        regex: what a generated answer should match somewhere.
        against: another model, measured on the same items: differences with paired standard errors.
        out: a file for everything, as JSON: figures, baselines, each item.
        json: print that instead.
        overrides: hyperparameters that differ from those of the files: --overrides.context 4096, --overrides.task none.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.evaluate import evaluate as measured

    if out is not None and not Path(out).expanduser().parent.is_dir():  # not after minutes
        raise ValueError(f"--out {out}: there is no folder {Path(out).parent}; make it first")
    loaded = models.load(model, ignore=ignore, overrides=overrides)
    other = None if against is None else models.load(against, ignore=ignore, overrides=overrides)
    result = measured(
        loaded, file, task, shots=shots, seed=seed, examples=examples, separator=separator.replace("\\n", "\n"),
        template=None if template is None else template.replace("\\n", "\n"),
        fields=fields, window=window, stride=stride, max_new_tokens=max_new_tokens, regex=regex, against=other,
    )  # fmt: skip
    if out is not None:
        result.write(Path(out).expanduser())
    print(plain.dump(result.json()) if json else report(result, model, against))


def options(parser: Parser) -> None:
    """The options of the verb; `--from` is a word of Python's, so that the parameter is `examples`."""
    parser.add_function(evaluate, skip=("examples",))
    parser.labels["examples"] = "a text"
    text = "a file of examples, in the form of FILE; by default FILE itself. Baselines learn from it."
    parser.add_argument("--from", dest="examples", type=str | None, default=None, help=text)


def run(args: Any) -> None:
    """Does it."""
    evaluate(**pick(args, evaluate))


def report(result: Any, model: str, against: str | None) -> str:
    """The result for people."""
    parts = [("", result.metrics), ("beside", result.baselines), (f"{against}", result.against)]
    parts.append((f"{model} - {against}", result.differences))
    lines = [f"{result.task}, {result.count} items"]
    for title, figures in parts:
        if figures:
            lines += [title] if title else []
            lines.append(plain.table(((name, *_cells(e)) for name, e in figures.items()), right=(1,)))
    for name in ("confusion", "reliability", "risk"):
        lines += _table(name, result.details) if result.details.get(name) else []
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _cells(e: Any) -> tuple[str, str, str]:
    return f"{e.value:.4g}", "" if e.low is None else f"[{e.low:.4g}, {e.high:.4g}]", e.how


def _table(name: str, details: dict[str, Any]) -> list[str]:
    rows: list[tuple[Any, ...]]
    if name == "confusion":
        classes = [str(c)[:16] for c in details["classes"]]
        rows = [("", *classes), *((c, *row) for c, row in zip(classes, details[name], strict=True))]
        return ["confusion (a row is the right class)", plain.table(rows)]
    if name == "reliability":
        rows = [("confidence", "items", "mean", "accuracy", "95 % Wilson")]
        for r in details[name]:
            low, high = (f"{r['accuracy'][side]:.3f}" for side in ("low", "high"))
            bounds = f"{r['bin'][0]:.1f} to {r['bin'][1]:.1f}"
            rows.append(
                (bounds, r["count"], f"{r['confidence']:.3f}", f"{r['accuracy']['value']:.3f}", f"[{low}, {high}]")
            )
        return ["reliability", plain.table(rows)]
    rows = [(f"{r['coverage']:.0%}", r["answered"], f"{r['risk']['value']:.3f}") for r in details[name]]
    return ["risk at coverage", plain.table([("coverage", "answered", "risk"), *rows])]
