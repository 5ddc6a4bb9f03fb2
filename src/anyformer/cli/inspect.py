"""show what a model is made of, and what became of everything in its file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer inspect smollm2 --tensors"


def inspect(
    model: str,
    *,
    size: str | None = None,
    tensors: bool = False,
    keys: bool = False,
    tree: bool = False,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints parameters, memory, recipe, tokenizer, processor, noising and the ledger of a model or an architecture.

    Args:
        model: a directory, a .gguf file, a hub id, real weights by name, an architecture, or a config.json alone (no
            weights are made of these two).
        size: of an architecture, e.g. 7b; tiny by default.
        tensors: list every tensor of the file: used, derived or ignored, and why.
        keys: list every config key of the file, likewise.
        tree: list all module paths.
        json: everything, as JSON.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.explain.facts import inspect as look

    facts = look(models.shape(model, size, task, ignore))
    print(plain.dump(facts.to_json()) if json else report(facts, tensors, keys, tree))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(inspect)


def run(args: Any) -> None:
    """Does it."""
    inspect(**pick(args, inspect))


def report(facts: Any, tensors: bool = False, keys: bool = False, tree: bool = False) -> str:
    """The facts as text for a terminal."""
    sections = [_head(facts), _parameters(facts), _memory(facts)]
    if facts.tokenizer is not None:
        sections.append("tokenizer\n" + plain.table((k, _text(v)) for k, v in facts.tokenizer.items()))
    if facts.processor is not None:
        sections.append("processor\n" + plain.table((step,) for step in facts.processor.split("; ")))
    if facts.noising is not None:
        sections.append(f"noising\n  {facts.noising}")
    if facts.ledger is not None:
        sections.append(_ledger(facts, tensors, keys))
    if tree:
        sections.append("module paths\n" + plain.table(facts.tree))
    return "\n\n".join([*sections, _recipe(facts)])


def _head(facts: Any) -> str:
    context = "any length" if facts.context is None else f"up to {facts.context:,}"
    page = facts.page or "its own recipe, below"
    rows = [("architecture", page), ("skeleton", facts.skeleton), ("tokens", context)]
    if facts.ledger is not None:
        rows += [("file", f"{facts.ledger['path']} ({facts.ledger['format']})"), ("ledger", facts.summary)]
    return plain.table(rows, indent=0)


def _parameters(facts: Any) -> str:
    rows = [(part, f"{count:,}", f"{count / facts.parameters:.1%}") for part, count in facts.parts.items()]
    return f"parameters  {facts.parameters:,}\n" + plain.table(rows, right=(1, 2))


def _memory(facts: Any) -> str:
    rows = [("weights now", ", ".join(f"{plain.size(n)} {dtype}" for dtype, n in facts.weights.items()))]
    rows += [("weights as", ", ".join(f"{plain.size(n)} {dtype}" for dtype, n in facts.weights_as.items()))]
    if state := facts.state:
        named = ((state.fixed, "fixed"), (state.token, "a token"), (state.source, "a source token"))
        each = ", ".join(f"{plain.size(count)} {what}" for count, what in named if count)
        rows.append(("decoding state", f"{each}; at {state.tokens:,} tokens {plain.size(state.full)} (one sequence)"))
    return "memory\n" + plain.table(rows)


def _ledger(facts: Any, tensors: bool, keys: bool) -> str:
    parts = []
    tables = [("tensors of the file", "tensors", tensors, facts.ledger["tensors"])]
    tables.append(("keys of config.json", "keys", keys, facts.ledger["config"]))
    tables += [(f"keys of {name}", "keys", keys, lines) for name, lines in facts.ledger["files"].items()]
    for name, option, wanted, lines in tables:
        shown = lines if wanted else [line for line in lines if line["status"] not in ("used", "fixed")]
        if shown:
            title = name + ("" if wanted else f" with another use (--{option}: all)")
            parts.append(f"{title}\n" + plain.table(_row(line) for line in shown))
    return "\n\n".join(parts) or "every tensor and key of the file is used (--tensors, --keys: all)"


def _row(line: dict[str, Any]) -> tuple[str, ...]:
    what = f"{line['dtype']} {' x '.join(map(str, line['shape']))}" if "shape" in line else _text(line["value"])
    return line.get("name") or line["key"], what, line["status"], line["detail"]


def _recipe(facts: Any) -> str:
    from anyformer.explain.tree import wrapped

    return "recipe\n" + "\n".join("  " + line for line in wrapped(facts.recipe).splitlines())


def _text(value: Any) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
