"""plan a large run: layouts that fit, memory of each GPU, days, energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer plan --params 7b --tokens 140b --gpus 64xh100 --budget 5days"


def plan(
    *,
    tokens: str,
    gpus: str,
    params: str | None = None,
    size: str | None = None,
    overrides: dict[str, Any] | None = None,
    context: int | None = None,
    budget: str | None = None,
    price: float | None = None,
    batch: str | None = None,
    utilisation: float | None = None,
    overlap: float | None = None,
    reserve: float | None = None,
    network: float | None = None,
    watts: float | None = None,
    pue: float | None = None,
    carbon: float | None = None,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the quickest layouts, with memory by part, days, kWh and CO2, each formula, and what matters most.

    Args:
        tokens: of the run, e.g. 140b.
        gpus: number and kind, e.g. 64xh100.
        params: a usual decoder with about so many parameters, e.g. 7b, in place of a model.
        size: of an architecture, e.g. 7b; tiny by default.
        overrides: hyperparameters of an architecture that differ from those of the size, e.g. --overrides.depth 96
        context: tokens of a row; by default the longest of the model, of --params 4096.
        budget: the longest time, e.g. 5days or 36h; a run that needs more is refused.
        price: of an hour of a GPU.
        batch: tokens of a step; by default 4 million, fewer for less than 20 billion tokens.
        utilisation: share of the GPU's peak that products reach while they run; 0.5 by default.
        overlap: share of communication that runs beside computation where it can; 0.7 by default.
        reserve: share of a GPU's memory that is kept free; 0.1 by default.
        network: GB a second of each GPU to other machines; by default as usual with this kind.
        watts: of a GPU with its share of the host; by default the board's limit and a quarter.
        pue: energy of the building to that of its computers; 1.1 by default.
        carbon: kg CO2 of a kWh; 0.429 by default.
        json: everything, as JSON.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """


def options(parser: Parser) -> None:
    """The options of the verb, and its model."""
    parser.add_function(plan)
    text = "an architecture, the file of a recipe, a config.json or a directory; or --params"
    parser.add_argument("model", nargs="?", help=text, type=str)


def run(args: Any) -> None:
    """Does it."""
    from anyformer.scale import planning, quantities
    from anyformer.scale.gpus import parse
    from anyformer.scale.shape import shape, usual

    given = pick(args, plan)
    if (args.model is None) == (given["params"] is None):
        raise ValueError("plan needs a model or --params, and not both, e.g. anyformer plan --params 7b …")
    tokens, (count, gpu) = quantities.positive("--tokens", given["tokens"]), parse(given["gpus"])
    assumed = planning.assumptions(gpu, tokens, given)
    price = None if given["price"] is None else quantities.positive("--price", given["price"])
    longest = None if given["budget"] is None else quantities.days(given["budget"])
    if args.model is None:
        if given["size"] or given["overrides"]:
            raise ValueError("--size and --overrides are for an architecture, and --params has a shape of its own")
        asked = quantities.positive("--params", given["params"])
        words, made = usual(asked, given["context"] or 4096)
    else:
        found = models.outline(args.model, given["size"], given["task"], given["ignore"], given["overrides"])
        words, made = args.model + (f" {given['size']}" if given["size"] else ""), shape(found.recipe, given["context"])
        asked = float(made.parameters)
    done = planning.plan(words, made, asked, tokens, count, gpu, assumed, longest, price)
    print(plain.dump(done.to_json()) if given["json"] else done)
