"""Forecasters of one shape, with random weights, beside transformers.

A context of 336 steps, 48 ahead, lags of 1 to 7, four features of the time, width 64, two layers on each side, hidden
256, batch 32. Inference is one pass over windows whose values ahead are given, without gradients; a step is the
likelihood of the values ahead, forward and backward, in training mode with dropout 0, without an optimiser; ours runs
as in `fit`, which keeps freed memory for the next step (`core.machine.kept_memory`). Float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.contest import THREADS
from benchmarks.duel import duels, stepping
from benchmarks.report import Section, row

NAMES = {"informer": "Informer", "autoformer": "Autoformer"}
BATCH, CONTEXT, HORIZON, FEATURES, HIDDEN = 32, 336, 48, 4, 256


def _inputs() -> dict[str, Any]:
    """Windows, under the names that both have."""
    import torch

    noise = torch.Generator().manual_seed(0)
    past = CONTEXT + 7
    return {
        "past_values": 5 + torch.randn(BATCH, past, generator=noise),
        "past_observed_mask": torch.ones(BATCH, past, dtype=torch.long),
        "past_time_features": torch.randn(BATCH, past, FEATURES, generator=noise),
        "future_time_features": torch.randn(BATCH, HORIZON, FEATURES, generator=noise),
        "future_values": 5 + torch.randn(BATCH, HORIZON, generator=noise),
    }


def ours(name: str) -> tuple[Any, Callable[[Any], Any]]:
    """Our model, and its loss as a function of the inputs."""
    import anyformer as af
    from anyformer.train.likelihood import Likelihood

    off = {"dropout": 0.0, "hidden_dropout": 0.0} | ({"attention_dropout": 0.0} if name == "informer" else {})
    sizes = {"context": CONTEXT, "horizon": HORIZON, "calendar": FEATURES, "hidden": HIDDEN}
    model = af.build(name, "base", seed=0, **sizes, **off)
    objective = Likelihood.of(model)

    def loss(inputs: dict[str, Any]) -> Any:
        known = {n: v for n, v in inputs.items() if n in model.inputs()}
        return objective(model(**known), inputs["future_values"], float(BATCH * HORIZON))

    return model, loss


def theirs(name: str) -> tuple[Any, Callable[[Any], Any]]:
    """The same of transformers."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    kind = {"informer": t.InformerConfig, "autoformer": t.AutoformerConfig}[name]
    off = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    drops = dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop"), 0.0)
    config = kind(
        prediction_length=HORIZON, context_length=CONTEXT, num_time_features=FEATURES, encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN, **off, **drops,
    )  # fmt: skip
    model = {"informer": t.InformerForPrediction, "autoformer": t.AutoformerForPrediction}[name](config)
    return model, lambda inputs: model(**inputs).loss


def build(key: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """The number of parameters, and the function that makes a pass or a step."""
    import torch

    torch.set_num_threads(THREADS)
    side, _, name = key.partition("_")
    model, loss = (ours if side == "ours" else theirs)(name)
    inputs = _inputs()
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"parameters": parameters}, stepping(model, lambda: loss(inputs), kept=side == "ours")


def run(rounds: int = 12) -> Section:
    """The section of the report."""
    notes: list[str] = []
    rows, claims = duels(
        "series",
        NAMES,
        dict.fromkeys(NAMES, "transformers"),
        rounds,
        notes,
        cell=lambda s: f"{1000 * s:.0f} ms",
        warm=2,
    )
    table = [row("", "", "inference", "time / ours", "step", "time / ours"), *rows]
    return Section("Series", (__doc__ or "").strip(), table, claims, notes)


if __name__ == "__main__":
    print(run().markdown("this machine"))
