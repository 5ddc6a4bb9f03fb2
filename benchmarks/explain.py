"""Faithfulness and cost of shares beside random ones and peers; the ledger of every page.

    python -m benchmarks.explain faithful RATED.txt WORK [--doc docs/understanding.md]    # WORK is for models
    python -m benchmarks.explain ledgers [--doc docs/understanding.md]
    python -m benchmarks.explain cost [--doc docs/understanding.md]    # beside the peers that are installed

RATED.txt: see examples/steering.py. Faithful: parts of the input are put to their baseline, those with the largest
shares first (deletion), or last (insertion, read from its end). F is the model's choice less its other class, or the
next value of a series; where F(x) < F(b), it is taken with the other sign. A curve is the mean over all shares of
parts removed of F - F(b), over all inputs, in parts of the mean F(x) - F(b): one input whose F(x) is near F(b) does not
outweigh all others. SRG, the symmetric relevance gain (Bluecher et al., 2024), is the distance between the two curves:
0 for a random order, whatever removal does to the model. Its error is the standard error over inputs, and of the
difference from a random order of the same input. The last column is the rank correlation of the shares with those of
the same model with new weights (Adebayo et al., 2018): near 0 = the shares are those of the weights.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.core import pages
from anyformer.explain import Contrast, attribute
from anyformer.explain.attribution import named
from anyformer.explain.features import Explained
from anyformer.explain.linearised import KINDS
from anyformer.explain.maps import attention_maps
from anyformer.explain.relevance import relevance
from anyformer.explain.target import goal
from anyformer.skeletons.forecaster import Forecaster
from benchmarks import explain_cost, report

METHODS = ("ig", "relevance", "grad", "occlusion", "rollout", "random")
STEPS, ITEMS = 10, 48


def shares(method: str, explained: Explained, aim: Any, main: str, number: int, base: str) -> Tensor | None:
    """The shares of the units of one call, flat; None where a method has none."""
    feature = explained.features[main]
    units = feature.units(torch.zeros_like(feature.value))[0].numel()
    if method == "random":
        return torch.randn(units, generator=torch.Generator().manual_seed(number))
    if method == "rollout":
        maps, _ = attention_maps(explained)
        flow = next((m.rollout for m in maps if m.rollout is not None), None)
        if flow is None or flow.shape[0] < units:
            return None
        return flow[0, flow.shape[0] - units :] if main == "pixel_values" else flow[0, :units]  # of the class token
    made = attribute(
        explained.model, explained.inputs, aim, method, only=[main], tolerance=0.05, points=2000, baseline=base
    )  # fmt: skip
    return made.values[main][0].flatten()


@torch.no_grad()
def curve(explained: Explained, aim: Callable[..., Tensor], main: str, order: Tensor, base: str) -> list[float]:
    """F with the first 0, 1/STEPS, … of the units in `order` at their baseline."""
    feature, bare = explained.features[main], explained.baseline(base)[main]
    shape, count = feature.shape(), len(order)
    scores = []
    for step in range(STEPS + 1):
        gone = torch.zeros(count)
        gone[order[: round(step * count / STEPS)]] = 1.0
        there = feature.spread(gone.reshape(1, *shape)).bool()
        scores.append(float(aim(explained.run({main: torch.where(there, bare, feature.value)}))))
    return scores


def contrasted(explained: Explained) -> Callable[..., Tensor]:
    """The model's choice less the best other class, with the sign that makes it larger than that of the baseline."""
    with torch.no_grad():
        out = explained.run()
        if out.logits is None or out.logits.ndim != 2 or isinstance(explained.model, Forecaster):
            return goal(explained.model, out, None, None, None, explained.inputs)
        one, two = out.logits[0].topk(2).indices.tolist()
        return goal(explained.model, out, Contrast(one, two), None, None, explained.inputs)


def faithful(model: Any, calls: list[dict[str, Tensor]], main: str, base: str) -> list[tuple[str, ...]]:
    """The rows of a table, a method each."""
    found: dict[str, list[tuple[float, float, float]]] = {method: [] for method in METHODS}
    alike, fresh = dict[str, list[float]](), pages.build(model.recipe, seed=1).eval()
    fresh.tokenizer = model.tokenizer
    for number, call in enumerate(calls):
        explained = Explained(model, call, [main])
        plain = contrasted(explained)
        with torch.no_grad():
            apart = float(plain(explained.run()) - plain(explained.run(explained.baseline(base))))
        sign = 1.0 if apart > 0 else -1.0

        def aim(out: Any, plain: Any = plain, sign: float = sign) -> Tensor:
            return sign * plain(out)

        for method in METHODS:
            share = shares(method, explained, aim, main, number, base)
            if share is None:
                continue
            order = share.argsort(descending=True)
            first, last = (curve(explained, aim, main, o, base) for o in (order, order.flip(0)))
            found[method].append((mean(first) - first[-1], mean(last) - last[-1], abs(apart)))
            if method != "random":
                alike.setdefault(method, []).append(
                    _alike(method, Explained(fresh, call, [main]), aim, main, base, share)
                )
    rows = list[tuple[str, ...]]()
    whole = mean(apart for *_, apart in found["random"])
    chance = [b - a for a, b, _ in found["random"]]
    for method, each in found.items():
        gains = [b - a for a, b, _ in each]
        if not gains:
            continue
        beside = [g - c for g, c in zip(gains, chance, strict=True)]
        gone, kept = (mean(row[i] for row in each) / whole for i in (0, 1))
        error, against = (stdev(v) / len(v) ** 0.5 / whole for v in (gains, beside))
        more = "" if method == "random" else f"{mean(beside) / whole:+.2f} ± {against:.2f}"
        same = [c for c in alike.get(method, ()) if c == c]
        other = f"{mean(same):+.2f} ± {stdev(same) / len(same) ** 0.5:.2f}" if same else ""
        rows.append((method, f"{gone:.2f}", f"{kept:.2f}", f"{mean(gains) / whole:.2f} ± {error:.2f}", more, other))
    return rows


def _alike(method: str, fresh: Explained, aim: Any, main: str, base: str, share: Tensor) -> float:
    """The rank correlation of shares with those of a model of other weights; NaN where that has none."""
    try:
        other = shares(method, fresh, aim, main, 0, base)
    except ValueError:  # integrated gradients that do not get complete
        return float("nan")
    if other is None:
        return float("nan")
    return float(torch.corrcoef(torch.stack([s.argsort().argsort().double() for s in (share, other)]))[0, 1])


def _text(rated: Path, work: Path) -> tuple[Any, list[dict[str, Tensor]], str]:
    from anyformer.train import finetune

    rows = [line.split("\t") for line in rated.read_text(encoding="utf-8", errors="replace").splitlines()]
    rows = [row for row in rows if len(row) == 3 and abs(float(row[1])) > 1 and len(row[2]) < 160]
    random.Random(0).shuffle(rows)
    with (work / "text.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((row[2], "good" if float(row[1]) > 0 else "bad") for row in rows[:-200])
    done = finetune("bert-tiny", work / "text.csv", out=work / "text", method="full", epochs=2, lr=1e-4, quiet=True)
    print(f"text: held-out error {done.after}", flush=True)
    model = af.load(done.checkpoint).eval()
    texts = [row[2] for row in rows[-200:] if 8 <= len(row[2].split()) <= 20]
    return model, [named(model, text) for text in texts[:ITEMS]], "input_ids"


def _picture(work: Path) -> tuple[Any, list[dict[str, Tensor]], str]:
    from PIL import Image
    from sklearn.datasets import load_digits

    from anyformer.generate.embedding import inputs_of
    from anyformer.train import train

    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = work / ("held" if i % 10 == 0 else "digits") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).resize((16, 16), 2).convert("RGB").save(folder / f"{i}.png")
    done = train("vit", "tiny", task="images", data=work / "digits", steps=600, batch=32, out=work / "picture",
                 eval_every=0, quiet=True)  # fmt: skip
    print(f"picture: held-out error {done.held_out}", flush=True)
    model = af.load(done.checkpoint).eval()
    files = sorted((work / "held").glob("*/*.png"))[::3]
    return model, [inputs_of(model, [file]) for file in files[:ITEMS]], "pixel_values"


def _series(work: Path) -> tuple[Any, list[dict[str, Tensor]], str]:
    import statsmodels.api as sm

    from anyformer.explain.reading import read
    from anyformer.train import train

    table = sm.datasets.sunspots.load_pandas().data
    values = [float(v) for v in table["SUNACTIVITY"]]
    _written(work / "series.csv", values)
    given: dict[str, Any] = {"steps": 600, "batch": 16, "eval_every": 0, "quiet": True}
    done = train("informer", "tiny", task="forecast", data=work / "series.csv", out=work / "series", **given)
    print(f"series: held out {done.held_out}", flush=True)
    model = af.load(done.checkpoint).eval()
    calls = []
    for end in range(len(values) - 96, len(values), 2):
        calls.append(read(model, str(_written(work / "part.csv", values[:end]))).inputs)
    return model, calls, "past_values"


def _written(file: Path, values: list[float]) -> Path:
    file.write_text("time,target\n" + "\n".join(f"{1700 + i}-01-01,{v}" for i, v in enumerate(values)) + "\n")
    return file


def run_faithful(rated: Path, work: Path, doc: Path | None) -> None:
    """Prints the table of each medium."""
    work.mkdir(parents=True, exist_ok=True)
    lines = ["| medium | method | deletion | insertion | SRG | more than random | ranks as with new weights |",
             "|---|" + 6 * "---|"]  # fmt: skip
    media = {"text": ("[MASK]", lambda: _text(rated, work)), "picture": ("mean", lambda: _picture(work)),
             "series": ("mean", lambda: _series(work))}  # fmt: skip
    for name, (base, make) in media.items():
        model, calls, main = make()
        rows = faithful(model, calls, main, base)
        rows.sort(key=lambda row: -float(row[3].split()[0]))
        lines += [f"| {f'{name}, {len(calls)}' if not i else ''} | {' | '.join(row)} |" for i, row in enumerate(rows)]
        print("\n".join(lines[-len(rows) :]), flush=True)
    print("\n".join(lines))
    if doc is not None:
        _put(doc, "faithful", lines)


def run_ledgers(doc: Path | None) -> None:
    """Prints the ledger of every page: a mixture of all its scores in float64, with redrawn weights."""
    lines = [
        "| page | score | inputs | biases | positions | softmax | others | missing / largest |",
        "|---|" + "---|" * 7,
    ]
    for name in pages.names():
        model = redrawn(af.build(name, "tiny", seed=0)).eval().double()
        call = model.complete(model.example(1, {}, torch.Generator().manual_seed(0)))
        call = {n: v.double() if v.is_floating_point() else v for n, v in call.items()}

        def mixed(out: Any) -> Tensor:
            x = (out.hidden if out.logits is None else out.logits).flatten(1)
            return x @ torch.randn(x.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)

        made = relevance(Explained(model, call), mixed).ledger
        terms = (made.score, sum(made.inputs.values()), *(made.added[kind] for kind in KINDS))
        lines.append(f"| {name} | {' | '.join(f'{v:.4g}' for v in terms)} | {abs(made.missing) / made.size:.0e} |")
        print(lines[-1], flush=True)
    if doc is not None:
        _put(doc, "ledgers", lines)


def _put(doc: Path, name: str, lines: list[str]) -> None:
    """Replaces what is between the marks of a document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if not report.fill(doc, begin, end, "\n".join(lines)):
        raise SystemExit(f"{doc} has no {begin} … {end}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = sys.argv[1:]
    document = Path(words.pop()) if words[-2:-1] == ["--doc"] and words.pop(-2) else None
    if words[:1] == ["faithful"] and len(words) == 3:
        run_faithful(Path(words[1]), Path(words[2]), document)
    elif words == ["ledgers"]:
        run_ledgers(document)
    elif words == ["cost"]:
        lines = explain_cost.table()
        if document is not None:
            _put(document, "cost", lines)
    else:
        raise SystemExit(__doc__)
