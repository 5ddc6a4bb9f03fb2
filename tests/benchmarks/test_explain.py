"""Faithfulness: of a linear model the shares of integrated gradients are the best order, and a random one has none."""

from __future__ import annotations

from typing import Any

import torch

import anyformer as af
from anyformer.explain.features import Explained
from benchmarks import explain


def _linear() -> Any:
    """A ViT whose blocks add nothing: its scores are sums over patches, up to a norm."""
    model = af.build("vit", "tiny", seed=0, depth=1).eval()
    with torch.no_grad():
        model.blocks[0].ffn.down.weight.zero_()
        model.blocks[0].mixer.q.weight.zero_()  # every patch is read alike
    return model


def test_the_best_order_is_told_from_a_random_one():
    model, draws = _linear(), torch.Generator().manual_seed(0)
    calls = [model.example(1, {}, draws) for _ in range(12)]
    rows = {row[0]: row for row in explain.faithful(model, calls, "pixel_values", "mean")}
    assert set(rows) == set(explain.METHODS)
    gain = {method: [float(v) for v in row[3].split(" ± ")] for method, row in rows.items()}
    assert gain["ig"][0] > 5 * gain["ig"][1] and abs(gain["random"][0]) < 3 * gain["random"][1]
    assert float(rows["ig"][2]) > float(rows["random"][2]) and float(rows["ig"][1]) < float(rows["random"][1])
    assert rows["random"][4] == "" and float(rows["ig"][4].split()[0]) > 0


def test_an_input_that_is_like_the_baseline_does_not_outweigh_others():
    """One call with almost the score of its baseline among others: its curve is of that size."""
    model, draws = _linear(), torch.Generator().manual_seed(0)
    call = model.example(1, {}, draws)
    flat = {"pixel_values": call["pixel_values"].mean((2, 3), keepdim=True) + 1e-4 * call["pixel_values"]}
    explained = Explained(model, flat, ["pixel_values"])
    scores = explain.curve(explained, explain.contrasted(explained), "pixel_values", torch.arange(16), "mean")
    assert len(scores) == explain.STEPS + 1 and max(scores) - min(scores) < 1e-2
    rows = explain.faithful(model, [call, flat], "pixel_values", "mean")
    assert all(abs(float(row[2])) < 10 for row in rows)
