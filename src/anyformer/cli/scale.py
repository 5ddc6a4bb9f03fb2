"""scaling laws: fit one to runs, foretell a loss, choose size and data, train a ladder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from anyformer.cli import plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer scale optimal --flops 1e21 --law besiroglu"


def scale(
    what: Literal["fit", "predict", "optimal", "run"],
    *,
    params: str | None = None,
    tokens: str | None = None,
    flops: str | None = None,
    loss: str | None = None,
    law: str = "besiroglu",
    columns: dict[str, str] | None = None,
    drop: int = 0,
    hold_out: int = 2,
    draws: int = 200,
    seed: int = 0,
    plot: str | None = None,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Prints a law with intervals, a loss, the best size and data, or the finished runs of a ladder.

    Args:
        what: fit: a law to the runs of FILE. predict: the loss of --params and --tokens. optimal: the best size and
            data for --flops, or to reach --loss, or the data for --params. run: train the runs of the ladder FILE.
        params: number of parameters, e.g. 7b.
        tokens: number of tokens, e.g. 140b.
        flops: floating-point operations of a run, e.g. 1e21.
        loss: to be reached.
        law: hoffmann, besiroglu, or the file that `fit --out` wrote.
        columns: of FILE, where they have other names: params, tokens or flops, and loss, e.g. --columns.loss val_loss
        drop: this many runs of the highest losses are left out.
        hold_out: this many runs of the most operations are foretold by a fit of the others.
        draws: resamples of the runs, for 90 % intervals.
        seed: of starts and resamples.
        plot: a PNG of losses and best sizes, of fit.
        out: a JSON file for the law, of fit.
        json: everything, as JSON.
    """


def options(parser: Parser) -> None:
    """The options of the verb, and its file."""
    parser.add_function(scale)
    parser.add_argument("file", nargs="?", help="of fit: runs (CSV, JSONL …); of run: the ladder (YAML)", type=str)


def run(args: Any) -> None:
    """Does it."""
    given = pick(args, scale)
    what, as_json = given["what"], given["json"]
    if (args.file is None) == (what in ("fit", "run")):
        raise ValueError(f"{what} needs a file" if args.file is None else f"{what} takes no file, got {args.file!r}")
    if what == "run":
        _run(args.file)
        return
    data, text = _fit(args.file, given) if what == "fit" else (_predict if what == "predict" else _optimal)(given)
    print(plain.dump(data) if as_json else text)


def _fit(file: str, given: dict[str, Any]) -> tuple[Any, str]:
    from anyformer.scale import draw, read, study

    for name, least in (("hold_out", 0), ("drop", 0), ("draws", 20)):
        if given[name] < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {given[name]}")
    columns = given["columns"] or {}
    if unknown := [name for name in columns if name not in ("params", "tokens", "flops", "loss")]:
        raise ValueError(f"--columns.{unknown[0]}: unknown; a run has params, tokens or flops, and loss")
    found = study(read(Path(file), columns, given["drop"]), given["hold_out"], given["draws"], given["seed"])
    if given["plot"]:
        draw(found, given["plot"])
    if given["out"]:
        found.law.save(Path(given["out"]))
    written = "".join(f"\nwrote {given[name]}" for name in ("plot", "out") if given[name])
    return found.to_json(), str(found) + ("\n" + written if written else "")


def _predict(given: dict[str, Any]) -> tuple[Any, str]:
    from anyformer.scale import laws, quantities

    if given["params"] is None or given["tokens"] is None:
        raise ValueError("predict needs --params and --tokens, e.g. --params 7b --tokens 140b")
    law = laws.load(given["law"])
    return _point(given, law, *(quantities.positive(f"--{name}", given[name]) for name in ("params", "tokens")))


def _optimal(given: dict[str, Any]) -> tuple[Any, str]:
    from anyformer.scale import laws, quantities

    named = [name for name in ("flops", "loss", "params") if given[name] is not None]
    if len(named) != 1:
        raise ValueError("optimal needs one of --flops, --loss and --params, e.g. --flops 1e21")
    law, value = laws.load(given["law"]), quantities.positive(f"--{named[0]}", given[named[0]])
    if named == ["params"]:
        return _point(given, law, value, law.tokens_for(value))
    return _point(given, law, *law.optimal(law.flops_for(value) if named == ["loss"] else value))


def _point(given: dict[str, Any], law: Any, params: float, tokens: float) -> tuple[Any, str]:
    """A size and a length, with the loss that the law has for them."""
    from anyformer.scale.quantities import short

    interval, warning = law.interval(lambda each: each.loss(params, tokens)), law.outside(params, tokens)
    loss, flops = float(law.loss(params, tokens)), 6 * params * tokens
    rows = [
        ("parameters", short(params)),
        ("tokens", f"{short(tokens)}, {tokens / params:.3g} a parameter"),
        ("operations", f"{flops:.3g} = 6 N D"),
        ("loss", f"{loss:.4f}" + (f", 90 % interval {interval[0]:.4f} to {interval[1]:.4f}" if interval else "")),
        ("law", f"{given['law']}: {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.4g} + {law.B:.4g} / D^{law.beta:.4g}"),
    ]
    data = {"params": params, "tokens": tokens, "flops": flops, "loss": loss, "interval": interval, "warning": warning}
    return data, plain.table(rows, indent=0) + (f"\nwarning: {warning}" if warning else "")


def _run(file: str) -> None:
    from anyformer.scale import climb

    done = climb(Path(file))
    print(f"next: anyformer scale fit {done} --plot {done.parent / 'fit.png'} --out {done.parent / 'law.json'}")
