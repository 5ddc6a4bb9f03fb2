"""Faithfulness and cost of shares, on a text, a picture and a series, beside random ones.

    python -m benchmarks.explain faithful RATED.txt WORK     # examples/steering.py has RATED.txt; WORK is for models
    python -m benchmarks.explain cost                        # beside captum, where that is installed

Faithful: parts of the input are put to their baseline, those with the largest shares first (deletion), or last
(insertion, read from its end). Both curves are means of the score over all shares of parts removed, as parts of
F(x) - F(b). SRG, the symmetric relevance gain (Bluecher et al., 2024), is the distance between the two: 0 for a random
order, whatever removal does to the model.
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import Tensor

import anyformer as af
from anyformer.explain import attribute
from anyformer.explain.attribution import named
from anyformer.explain.features import Explained
from anyformer.explain.maps import attention_maps
from anyformer.explain.target import goal

METHODS = ("ig", "relevance", "grad", "occlusion", "rollout", "random")
STEPS, ITEMS, ROUNDS = 10, 60, 5


def shares(method: str, explained: Explained, target: Any, main: str, number: int) -> Tensor | None:
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
        explained.model, explained.inputs, target, method, only=[main], tolerance=0.05, points=2000
    )  # fmt: skip
    return made.values[main][0].flatten()


@torch.no_grad()
def curves(explained: Explained, aim: Callable[..., Tensor], main: str, order: Tensor) -> list[float]:
    """The score with the first 0, 1/STEPS, … of the units in `order` at their baseline, as a part of F(x) - F(b)."""
    feature, base = explained.features[main], explained.baseline("mean")[main]
    shape, count = feature.shape(), len(order)
    scores = []
    for step in range(STEPS + 1):
        gone = torch.zeros(count)
        gone[order[: round(step * count / STEPS)]] = 1.0
        there = feature.spread(gone.reshape(1, *shape)).bool()
        scores.append(float(aim(explained.run({main: torch.where(there, base, feature.value)}))))
    whole, bare = scores[0], scores[-1]
    return [(s - bare) / (whole - bare) for s in scores] if abs(whole - bare) > 0.05 * max(abs(whole), 0.2) else []


def faithful(model: Any, calls: list[dict[str, Tensor]], main: str) -> dict[str, tuple[float, float, float, float]]:
    """By method deletion, insertion, SRG and its standard error."""
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for number, call in enumerate(calls):
        explained = Explained(model, call, [main])
        with torch.no_grad():
            aim = goal(model, explained.run(), None, None, None, explained.inputs)
        for method in METHODS:
            share = shares(method, explained, None, main, number)
            if share is None:
                continue
            order = share.argsort(descending=True)
            most, least = (curves(explained, aim, main, o) for o in (order, order.flip(0)))
            if most:
                found[method].append((mean(most), mean(least)))
    rows = {}
    for method, pairs in found.items():
        gains = [b - a for a, b in pairs]
        if gains:
            error = stdev(gains) / len(gains) ** 0.5
            rows[method] = (mean(a for a, _ in pairs), mean(b for _, b in pairs), mean(gains), error)
    return rows


def _text(rated: Path, work: Path) -> tuple[Any, list[dict[str, Tensor]], str]:
    from anyformer.train import finetune

    rows = [line.split("\t") for line in rated.read_text(encoding="utf-8", errors="replace").splitlines()]
    rows = [row for row in rows if len(row) == 3 and abs(float(row[1])) > 1 and len(row[2]) < 160]
    with (work / "text.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((row[2], "good" if float(row[1]) > 0 else "bad") for row in rows[:-200])
    done = finetune("bert-tiny", work / "text.csv", out=work / "text", method="full", epochs=2, lr=1e-4, quiet=True)
    print(f"text: held-out error {done.after}", flush=True)
    model = af.load(done.checkpoint).eval()
    texts = [row[2] for row in rows[-200:] if 6 <= len(row[2].split()) <= 20]
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
    given: dict[str, Any] = {"steps": 300, "batch": 16, "eval_every": 0, "quiet": True}
    done = train("informer", "tiny", task="forecast", data=work / "series.csv", out=work / "series", **given)
    print(f"series: held out {done.held_out}", flush=True)
    model = af.load(done.checkpoint).eval()
    calls = []
    for end in range(len(values) - 60, len(values), 3):
        calls.append(read(model, str(_written(work / "part.csv", values[:end]))).inputs)
    return model, calls, "past_values"


def _written(file: Path, values: list[float]) -> Path:
    file.write_text("time,target\n" + "\n".join(f"{1700 + i}-01-01,{v}" for i, v in enumerate(values)) + "\n")
    return file


def run_faithful(rated: Path, work: Path) -> None:
    """Prints the table of each medium."""
    work.mkdir(parents=True, exist_ok=True)
    for name, make in (("text", lambda: _text(rated, work)), ("picture", lambda: _picture(work)),
                       ("series", lambda: _series(work))):  # fmt: skip
        try:
            rows = faithful(*make())
        except (ImportError, ValueError, OSError) as error:
            print(f"{name}: not measured, {error}", flush=True)
            continue
        print(f"{name}\n  method     deletion  insertion  SRG", flush=True)
        for method, (gone, kept, gain, error_) in rows.items():
            print(f"  {method:10s} {gone:8.3f}  {kept:8.3f}   {gain:+.3f} ± {error_:.3f}", flush=True)


def one_cost(who: str, method: str) -> None:
    """Prints the seconds of some rounds, and the peak of memory, of one method in this process."""
    model = af.build(
        "llama", "tiny", dim=384, depth=8, heads=6, kv_heads=6, hidden=1024, vocab=8000, context=128, seed=0
    )
    model = model.eval()
    ids = torch.randint(0, 8000, (1, 96), generator=torch.Generator().manual_seed(0))
    explained = Explained(model, {"input_ids": ids})
    value = explained.features["input_ids"].value
    base = explained.baseline("zeros")["input_ids"]

    def score(x: Tensor) -> Tensor:
        logits: Any = explained.copies(len(x)).run({"input_ids": x}).logits
        return logits[:, -1, 7]

    def ours() -> Any:
        return attribute(model, ids, 7, method, baseline="zeros", tolerance=1e9)  # ig: 8 points

    def theirs() -> Any:
        import captum.attr as captum

        if method == "ig":
            return captum.IntegratedGradients(score).attribute(value, base, n_steps=8, internal_batch_size=8)
        if method == "grad":
            return captum.InputXGradient(score).attribute(value.clone().requires_grad_())
        mask = torch.arange(96)[None, :, None]
        return captum.FeatureAblation(score).attribute(value, base, feature_mask=mask, perturbations_per_eval=8)

    run, seconds = (ours if who == "ours" else theirs), []
    run()
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with torch.no_grad():
        start = time.perf_counter()
        explained.run()
        forward = time.perf_counter() - start
    print(json.dumps({"seconds": median(seconds), "megabytes": peak, "forward": forward}))


def run_cost() -> None:
    """Prints seconds and memory of each method, ours and captum's, each in processes of its own, in turns."""
    print(f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s); median of 3 processes")
    for method in ("grad", "ig", "occlusion", "relevance"):
        rows: dict[str, list[dict[str, float]]] = {"ours": [], "captum": []}
        for _ in range(3):
            for who in rows if method != "relevance" else ("ours",):
                words = [sys.executable, "-m", "benchmarks.explain", "one", who, method]
                done = subprocess.run(words, capture_output=True, text=True)
                if done.returncode == 0:
                    rows[who].append(json.loads(done.stdout.splitlines()[-1]))
        for who, made in rows.items():
            if made:
                told = {key: median(m[key] for m in made) for key in made[0]}
                print(f"{method:10s} {who:7s} {1000 * told['seconds']:8.0f} ms  {told['megabytes']:6.0f} MB  "
                      f"{told['seconds'] / told['forward']:.1f} forward passes", flush=True)  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["faithful"] and len(sys.argv) == 4:
        run_faithful(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1:2] == ["one"]:
        one_cost(*sys.argv[2:])
    elif sys.argv[1:] == ["cost"]:
        run_cost()
    else:
        raise SystemExit(__doc__)
