"""Losses whose logits are never whole: the numbers and gradients of whole ones, in less memory."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.parts import unscored
from anyformer.parts.heads import Logits, MaskedLM
from anyformer.parts.unscored import Unscored
from anyformer.skeletons.base import Output
from anyformer.train import Settings, lora, memory, objectives
from anyformer.train.step_loss import Loss

ON = Settings(1, chunked_loss="on", warmup=0)
OFF = dataclasses.replace(ON, chunked_loss="off")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows a piece, and a last one that is not full."""
    monkeypatch.setattr(unscored, "PIECE", 5_000)


def example(model: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor, Any]:
    """Inputs, labels of which some do not count, and the objective over tokens; skips models without a word head."""
    head = next((m for m in model.modules() if isinstance(m, Logits)), None)
    if head is None:
        pytest.skip("no head over a vocabulary")
    noise = torch.Generator().manual_seed(1)
    inputs = model.complete(model.example(2, {}, noise))
    kind = next(model.parameters()).dtype
    inputs = {n: v.to(kind) if v.is_floating_point() else v for n, v in inputs.items()}
    with torch.no_grad(), unscored.in_pieces(0):
        output = model(**inputs)
    at = output.heads.get("mlm", output.logits)
    if not isinstance(at, Unscored):
        pytest.skip("its logits over a vocabulary are no objective's")
    labels = torch.randint(0, head.vocab, at.shape[:-1], generator=noise)
    labels[0, ::3] = objectives.IGNORE
    return inputs, labels, objectives.masked_lm if isinstance(head, MaskedLM) else objectives.causal_lm


def found(model: Any, inputs: Any, labels: Any, objective: Any, settings: Settings) -> dict[str, torch.Tensor]:
    """The loss, and the gradient of each parameter."""
    model.zero_grad()
    loss = Loss(model, objective, settings)(inputs, labels, objectives.counted(labels), 1.0)
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", af.names())
def test_every_page_with_words_learns_the_same_in_pieces(name: str) -> None:
    model = af.build(name, "tiny", seed=0).double().eval()
    inputs, labels, objective = example(model)
    whole, pieces = (found(model, inputs, labels, objective, s) for s in (OFF, ON))
    assert whole.keys() == pieces.keys()
    for path, expected in whole.items():
        torch.testing.assert_close(pieces[path], expected, msg=path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, {"label_smoothing": 0.2, "z_loss": 1.0}]
)
def test_options_in_float32(options: dict[str, float], tied: bool) -> None:
    model = af.build("llama", "tiny", seed=0, tied=tied)
    inputs, labels, objective = example(model)
    whole, pieces = (found(model, inputs, labels, partial(objective, **options), s) for s in (OFF, ON))
    for path, expected in whole.items():
        assert (pieces[path] - expected).norm() <= 1e-6 * expected.norm(), path


def test_z_loss_is_its_formula() -> None:
    logits, labels = torch.randn(2, 3, 7, dtype=torch.float64), torch.tensor([[1, 2, -100], [0, -100, 6]])
    plain, more = (objectives.causal_lm(Output(logits, logits), labels, 4, z_loss=z) for z in (0.0, 0.5))
    sums = logits.exp().sum(-1).log().square()[labels != -100].sum()
    torch.testing.assert_close(more - plain, 0.5 * sums / 4)


def test_bfloat16_is_as_close_as_whole_logits() -> None:
    model = af.build("gpt", "tiny", seed=0)
    inputs, labels, objective = example(model)
    exact = found(model, inputs, labels, objective, OFF)
    half = [found(model, inputs, labels, objective, dataclasses.replace(s, precision="bf16")) for s in (OFF, ON)]
    for path, expected in exact.items():
        whole, pieces = ((h[path] - expected).norm() for h in half)
        assert pieces <= 1.5 * whole + 1e-3 * expected.norm(), path


def test_a_second_backward_pass_is_refused() -> None:
    x, w = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    loss = Unscored(x, w, None).cross_entropy(torch.tensor([5, -100, 0, 2]), -100)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran a second time"):
        loss.backward()


def test_without_counted_labels_it_is_0() -> None:
    x, w = torch.randn(2, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = Unscored(x, w, None).cross_entropy(torch.full((2,), -100), -100)
    loss.backward()
    assert not any(bool(t.any()) for t in (loss, x.grad, w.grad) if t is not None)


def test_a_label_outside_the_vocabulary_is_named() -> None:
    model = af.build("gpt", "tiny", seed=0)
    inputs, labels, objective = example(model)
    labels[1, 1] = 10_000
    with pytest.raises(ValueError, match="label 10000 is outside the head's classes"):
        found(model, inputs, labels, objective, ON)


def test_memory_is_less_and_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unscored, "PIECE", 1 << 18)
    model = af.build("llama", "tiny", seed=0, vocab=8_000)
    ids = torch.randint(0, 8_000, (8, 64))
    batch = {"input_ids": ids, "labels": ids}
    for small in (memory.SMALL, 0):  # by a step with content, and by shapes alone
        monkeypatch.setattr(memory, "SMALL", small)
        whole, pieces = (memory.estimate(model, batch, objectives.causal_lm, s) for s in (OFF, ON))
        logits = 4 * ids.numel() * 8_000
        assert whole.peak - pieces.peak > 2 * logits
        assert pieces.flops == whole.flops


def test_auto_begins_where_logits_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model = af.build("gpt", "tiny", seed=0)
    inputs, _, _ = example(model)
    with unscored.in_pieces():
        assert isinstance(model(**inputs).logits, torch.Tensor)
    with unscored.in_pieces(4 * model(**inputs).logits.numel()):
        assert isinstance(model(**inputs).logits, Unscored)
    assert isinstance(model(**inputs).logits, torch.Tensor)


def test_an_adapted_head_makes_its_logits_whole() -> None:
    model = af.build("llama", "tiny", seed=0, tied=False)
    lora.add(model, targets=("head.proj",))
    inputs = model.complete(model.example(2, {}, torch.Generator().manual_seed(0)))
    with unscored.in_pieces(0):
        assert isinstance(model(**inputs).logits, torch.Tensor)
    with pytest.raises(ValueError, match=r"chunked_loss='on' .* no head that is one matrix.* Use auto or off"):
        Loss(model, objectives.causal_lm, ON)


def test_what_stands_against_it_is_named() -> None:
    with pytest.raises(ValueError, match="the objective reads logits"):
        Loss(af.build("gpt", "tiny"), objectives.classification, ON)
    with pytest.raises(ValueError, match="no head that is one matrix"):
        Loss(af.build("vit", "tiny"), objectives.causal_lm, ON)
    with pytest.raises(ValueError, match="processes hold parts of the head"):
        Loss(af.build("gpt", "tiny"), objectives.causal_lm, ON, whole=False)
    changes: list[dict[str, Any]] = [{"compile": True}, {"statistics_every": 1}]
    for change in changes:
        with pytest.raises(ValueError, match=f"{next(iter(change))} needs it there"):
            Settings(1, chunked_loss="on", **change)
