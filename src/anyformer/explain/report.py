"""The report: everything that explains one answer, as values, as JSON and as one HTML file without network.

B batch, T positions, L layers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.explain.attribution import Attribution, attribute
from anyformer.explain.direct import direct
from anyformer.explain.features import Explained, Feature
from anyformer.explain.findings import findings
from anyformer.explain.integral import Incomplete
from anyformer.explain.labels import labels
from anyformer.explain.lens import lens
from anyformer.explain.maps import attention_maps, packed
from anyformer.explain.reading import Reading
from anyformer.explain.relevance import Ledger
from anyformer.explain.target import Goal, Target, goal
from anyformer.generate.classifying import names_of

WIDE = 64  # positions of the lens that are shown, the last ones
BRANCHES = 24  # direct shares that are shown, the largest ones
LINE = 400  # bars of an input with one axis
PAGE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Report:
    """The explanation of one answer.

    Args:
        data: what the page shows, plain values.
        attribution: the shares of the input, or None where that failed.
    """

    data: dict[str, Any]
    attribution: Attribution | None

    @property
    def failed(self) -> list[str]:
        """The sections that could not be made, each with the reason."""
        return [
            f"{name}: {part['error']}" for name, part in self.data.items() if isinstance(part, dict) and "error" in part
        ]

    def html(self) -> str:
        """The page: one file, no network; what the input says stays text."""
        page = PAGE.read_text(encoding="utf-8")
        script = page.partition("<script>")[2].partition("</script>")[0]
        key = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        data = json.dumps(self.data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        return page.replace("{script}", f"'sha256-{key}'", 1).replace("{data}", data, 1)

    def json(self) -> dict[str, Any]:
        """The same without pictures and maps."""
        return {
            name: part
            for name, part in self.data.items()
            if name not in ("picture", "wave", "spectrogram", "maps", "pairs", "axes")
        }


def report(
    model: Any,
    reading: Reading,
    target: Target = None,
    method: str | None = None,
    *,
    name: str = "",
    baseline: Any = "mean",
    at: int | None = None,
    head: str | None = None,
    tolerance: float = 1e-2,
    points: int = 1024,
    routers: str = "half",
    more: str | None = None,
    texts: Sequence[str] = (),
) -> Report:
    """Shares of the input, the lens, direct shares of branches and heads, and all attention maps, of one answer.

    A section that this model has no rule for holds the reason in its place. Arguments as of `attribute`; `method` None:
    ig, and occlusion where ig is not complete, which the report says. `more`: "roles" of heads or "neurons", a section
    of their own; `texts`, where they are looked up.

    Raises:
        ValueError: for a wrong target, method, baseline or input.
    """
    target = target if reading.target is None else reading.target
    at = reading.at if at is None else at
    explained = Explained(model, reading.inputs)
    with torch.no_grad():
        out = explained.run()
        aim = goal(model, out, target, at, head, explained.inputs)
    logits = out.logits if head is None else out.heads[head]
    assert logits is not None  # `goal` found a score in it
    tried: list[Attribution] = []
    shown = str(baseline)
    if explained.missing and reading.unknown is not None and baseline == "mean":
        baseline, method = reading.unknown, method or "occlusion"  # ids in several tables: nothing lies between two
        shown = "nothing known"

    def shares() -> dict[str, Any]:
        note = ""
        for way in ("ig", "occlusion") if method is None else (method,):
            try:
                tried.append(
                    attribute(
                        model, reading.inputs, target, way, baseline=baseline, at=at, head=head, tolerance=tolerance,
                        points=points, routers=routers,
                    )
                )  # fmt: skip
                return _attribution(model, explained, reading, tried[0], shown) | {"note": note}
            except Incomplete as error:
                if method is not None:
                    raise
                note = f"{error}. These are the shares of occlusion."
        raise AssertionError("occlusion is always complete")

    maps, missing = attention_maps(explained)
    data = {
        "model": name or model.page or type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "kind": reading.kind, "input": reading.name, "picture": reading.picture, "wave": reading.wave,
        "spectrogram": reading.spectrogram,
        "seconds": reading.seconds, "target": aim.name, "at": None if aim.at is None else aim.at[0],
        "said": _said(model, logits, aim), "attribution": _or_why(shares, Incomplete),
        "lens": _or_why(lambda: _lens(model, explained, target, at, head)),
        "direct": _or_why(lambda: _direct(model, reading, target, at, head)),
        "maps": packed(maps), "missing": missing, "axes": _axes(model, explained, reading),
    }  # fmt: skip
    if reading.pairs is not None:
        data["pairs"] = reading.pairs(out)
    if more is not None:
        data[more] = _or_why(lambda: findings(model, explained, more, target, texts, at, head))
    return Report(data, tried[0] if tried else None)


def _or_why(make: Callable[[], dict[str, Any]], reason: type[ValueError] = ValueError) -> dict[str, Any]:
    """A section, or the reason why there is none."""
    try:
        return make()
    except reason as error:
        return {"error": str(error)}


def _said(model: Any, logits: Tensor, aim: Goal) -> list[list[Any]]:
    """The likeliest tokens or classes at the place of the target, with their probabilities; none without such."""
    if not aim.ids:
        return []
    row = logits[0] if logits.ndim == 2 else logits[0, aim.at[0] if aim.at else -1]
    best = row.float().softmax(-1).topk(min(5, len(row)))
    return [[_named(model, int(i), len(row)), float(p)] for i, p in zip(best.indices, best.values, strict=True)]


def _named(model: Any, number: int, count: int) -> str:
    if model.vocab is not None and count >= model.vocab:
        return labels(model.tokenizer, [number])[0]
    return names_of(model, count)[number]


def _attribution(
    model: Any, explained: Explained, reading: Reading, made: Attribution, baseline: str
) -> dict[str, Any]:
    inputs = [
        _unit(model, explained, reading, f, made.values[n][row], row)
        for n, f in {**explained.features, **explained.ids}.items()
        for row in range(len(f.value))
    ]
    score, base, residual = (float(v[0]) for v in (made.score, made.base, made.residual))
    return {"method": made.method, "baseline": baseline, "score": score, "base": base, "residual": residual,
            "points": made.points, "inputs": inputs} | (
            {} if made.ledger is None else {"ledger": _ledger(made.ledger)})  # fmt: skip


def _ledger(ledger: Ledger) -> dict[str, Any]:
    """The ledger of relevance as plain values: the sums, and a row for each layer and part."""
    rows = [
        {"name": r.name, "stream": r.stream, "beside": r.beside, "behind": r.behind, "added": r.added}
        for r in ledger.rows
    ]
    return {"inputs": ledger.inputs, "added": ledger.added, "rows": rows, "missing": ledger.missing,
            "routers": ledger.routers}  # fmt: skip


def _unit(
    model: Any, explained: Explained, reading: Reading, feature: Feature, values: Tensor, row: int
) -> dict[str, Any]:
    """One row of an input with the shares of its units, as the page draws it."""
    values = values.double().cpu()
    several = len(feature.value) > 1
    shown: dict[str, Any] = {"name": f"{feature.name}, {row + 1}" if several else feature.name}
    shown["main"] = feature.name == model.takes  # of which the wave and the spectrogram are
    if feature.name in reading.labels:
        return {**shown, "draw": "tokens", "labels": reading.labels[feature.name], "values": _short(values)}
    if values.ndim == 2:
        return {**shown, "draw": "grid", "rows": values.shape[0], "columns": values.shape[1],
                "values": _short(values.flatten())}  # fmt: skip
    if feature.table is not None and feature.name.endswith("input_ids"):
        keep = slice(None) if feature.keep is None else feature.keep[row].cpu()
        tokens = labels(model.tokenizer, explained.inputs[feature.name][row].cpu()[keep].tolist())
        values = values[keep]
        return {**shown, "draw": "tokens", "labels": tokens, "values": _short(values)}
    values = values.flatten()
    if len(values) > LINE:  # a sound: the sums of equal pieces
        values = torch.stack([part.sum() for part in values.tensor_split(LINE)])
    return {**shown, "draw": "line", "values": _short(values)}


def _short(values: Tensor) -> list[float]:
    return [float(f"{v:.4g}") for v in values.tolist()]


def _lens(model: Any, explained: Explained, target: Target, at: int | None, head: str | None) -> dict[str, Any]:
    seen = lens(model, explained.inputs, target, top=5, at=at, head=head)
    logits = seen.last.logits if head is None else seen.last.heads[head]
    assert logits is not None
    count = logits.shape[-1]
    place = goal(model, seen.last, target, at, head, explained.inputs).at
    flat = seen.top.ndim == 3  # (L, B, k), of scores of the whole input
    last = None if place is None else place[0]
    rows = []
    for i, layer in enumerate(seen.layers):
        top, share = (v[i, 0] if flat else v[i, 0, last if last is not None else -1] for v in (seen.top, seen.shares))
        best = [[_named(model, int(t), count), round(float(s), 4)] for t, s in zip(top, share, strict=True)]
        rank = None if seen.rank is None else int(seen.rank[i, 0])
        rows.append({"layer": layer, "top": best, "rank": rank, "score": float(f"{float(seen.score[i, 0]):.4g}")})
    if flat:
        return {"rows": rows, "grid": None}
    start = max(0, seen.top.shape[2] - WIDE)
    names = [[_named(model, int(t), count) for t in seen.top[i, 0, start:, 0]] for i in range(len(seen.layers))]
    chances = [[round(float(s), 3) for s in seen.shares[i, 0, start:, 0]] for i in range(len(seen.layers))]
    return {"rows": rows, "grid": {"start": start, "names": names, "chances": chances}}


def _direct(model: Any, reading: Reading, target: Target, at: int | None, head: str | None) -> dict[str, Any]:
    made = direct(model, reading.inputs, target, at=at, head=head)
    shares = [[path, float(value[0].sum())] for path, value in made.shares.items()]
    heads: list[tuple[str, float]] = [(f"{path}, head {h}", float(value)) for path, each in made.heads.items()
             for h, value in enumerate(each[0].sum(0))]  # fmt: skip
    return {
        "shares": [[n, float(f"{v:.4g}")] for n, v in shares],
        "heads": [[n, float(f"{v:.4g}")] for n, v in sorted(heads, key=lambda pair: -abs(pair[1]))[:BRANCHES]],
        "bias": float(made.bias[0]), "score": float(made.score[0]),
    }  # fmt: skip


def _axes(model: Any, explained: Explained, reading: Reading) -> dict[str, list[str]]:
    """The labels of positions, for maps of that many rows."""
    if reading.kind == "episode":  # as the front-end puts them in a row
        steps = range(explained.inputs["states"].shape[1])
        return {"steps": [f"{what} {i}" for i in steps for what in ("return", "state", "action")]}
    if reading.kind == "graph":
        return {"nodes": ["the graph", *reading.labels["nodes"]], "alone": reading.labels["nodes"]}
    ids = [f for f in explained.features.values() if f.table is not None and f.name.endswith("input_ids")]
    return {f.name: labels(model.tokenizer, explained.inputs[f.name][0].tolist()) for f in ids}
