"""Steps in bfloat16: weights that are converted once, runs that go on bit for bit, losses as close as float32's own
noise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import anyformer as af
from anyformer.train import Settings, checkpoint, fit, objectives
from anyformer.train.checkpoint import Run
from anyformer.train.loggers import Observer
from anyformer.train.loop import Loop

TEXT = torch.randint(0, 96, (4096,), generator=torch.Generator().manual_seed(5))
LENGTH = 80  # long enough for attention's own backward pass


def batches(number: int) -> dict[str, torch.Tensor]:
    """Stretches of a text in which each token follows from the one before, but for one in eight."""
    noise = torch.Generator().manual_seed(number)
    ids = torch.randint(0, 96, (2, 1), generator=noise)
    for _ in range(LENGTH):
        other = torch.randint(0, 96, (2, 1), generator=noise)
        ids = torch.cat((ids, torch.where(torch.rand(2, 1, generator=noise) < 1 / 8, other, TEXT[ids[:, -1:]] % 96)), 1)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def model(page: str, seed: int = 0) -> Any:
    return af.build(page, "tiny", seed=seed, context=LENGTH)


class Casts(TorchDispatchMode):
    """Counts conversions to bfloat16 by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[torch.Size] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.shapes[args[0].shape] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("page", ["gpt", "llama"])
def test_a_step_converts_no_weight_twice(page: str, tmp_path: Path) -> None:
    """However many batches; and the input of several products is converted once for all of them."""
    made = model(page).train()
    settings = Settings(4, accumulate=3, precision="bf16", warmup=0)
    loop = Loop(made, batches, objectives.causal_lm, settings, Run(tmp_path), None, {}, Observer())
    with Casts() as casts:
        loop.advance()
    matrices = Counter(p.shape for p in made.parameters() if p.ndim == 2)
    assert matrices and all(casts.shapes[shape] <= count for shape, count in matrices.items())
    streams = casts.shapes[torch.Size((2, LENGTH, made.blocks[0].mixer.q.in_features))]
    assert streams == 3 * (4 * len(made.blocks) + 1)  # into attention and MLP of each block, and back; the head


def losses(page: str, precision: str, steps: int, out: Path, seed: int = 0) -> torch.Tensor:
    """The loss of each step."""
    seen: list[float] = []

    class Watch(Observer):
        def on_steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
            seen.append(row["loss"])

    settings = Settings(steps, lr=2e-3, warmup=10, log_every=1, precision=precision, seed=seed)
    fit(model(page, seed), batches, objectives.causal_lm, settings, out, observer=Watch())
    return torch.tensor(seen)


@pytest.mark.parametrize("page", ["gpt", "llama", "qwen2"])
def test_early_losses_are_those_of_float32(page: str, tmp_path: Path) -> None:
    """Step by step, before the two runs part."""
    single, half = (losses(page, kind, 12, tmp_path / kind) for kind in ("fp32", "bf16"))
    assert 0 < (single - half).abs().max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("page", ["gpt", "llama", "qwen2"])
def test_500_steps_end_where_those_of_float32_end(page: str, tmp_path: Path) -> None:
    """The mean of the last 100 losses differs by less than that of two runs of float32 with other first weights."""
    ends = {
        (kind, seed): float(losses(page, kind, 500, tmp_path / f"{kind}{seed}", seed)[-100:].mean())
        for kind, seed in (("fp32", 0), ("bf16", 0), ("fp32", 1), ("fp32", 2))
    }
    noise = max(abs(ends["fp32", 0] - ends["fp32", seed]) for seed in (1, 2))
    assert abs(ends["bf16", 0] - ends["fp32", 0]) < max(noise, 0.01), ends


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = Settings(4, accumulate=2, precision="bf16", warmup=1, save_every=2, keep_last=4)
    whole, again = model("llama"), model("llama")
    fit(whole, batches, objectives.causal_lm, settings, tmp_path / "run")
    for later in sorted((tmp_path / "run").glob("step-*"))[1:]:
        assert later.name == "step-000004"
        later.rename(tmp_path / "aside")
    fit(again, batches, objectives.causal_lm, settings, tmp_path / "run", resume=True)
    assert checkpoint.latest(tmp_path / "run") is not None
    for mine, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)
