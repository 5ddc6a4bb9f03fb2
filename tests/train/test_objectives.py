"""Objectives against their formulas in NumPy, the counting of tokens, the schedule, which parameters decay."""

import itertools

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.core.skeletons import Output
from anyformer.train import objectives, optim
from anyformer.train.schedule import warmup_cosine


def reference(logits, labels):
    """The sum of -log softmax over what counts, and how much that is, in float64."""
    x, y = logits.detach().double().numpy().reshape(-1, logits.shape[-1]), labels.numpy().reshape(-1)
    logs = x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)
    kept = y != -100
    return -logs[kept, y[kept]].sum(), kept.sum()


def some(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("objective", [objectives.causal_lm, objectives.masked_lm, objectives.classification])
def test_token_losses_are_their_formula(objective):
    logits, labels = some(3, 5, 11), torch.randint(0, 11, (3, 5))
    labels[0, 2:], labels[2] = -100, -100
    total, count = reference(logits, labels)
    loss = objective(Output(logits, logits), labels, objectives.counted(labels))
    assert float(loss) == pytest.approx(total / count, rel=1e-6)


def test_classification_of_whole_inputs():
    logits, labels = some(4, 3), torch.tensor([0, 2, -100, 1])
    total, count = reference(logits, labels)
    assert float(objectives.classification(Output(logits, logits), labels, 3)) == pytest.approx(total / count, rel=1e-6)


def test_masked_lm_reads_its_own_head():
    labels = torch.randint(0, 11, (2, 5))
    output = Output(some(1), logits=some(2, 2), heads={"nsp": some(2, 2), "mlm": some(2, 5, 11)})
    total, count = reference(output.heads["mlm"], labels)
    assert float(objectives.masked_lm(output, labels, count)) == pytest.approx(total / count, rel=1e-6)


def test_nothing_counted_is_zero_with_zero_gradients():
    logits = some(2, 3, 4).requires_grad_()
    loss = objectives.causal_lm(Output(logits, logits), torch.full((2, 3), -100), 1)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_label_out_of_range_and_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"label 11 is outside .* 0 to 10"):
        objectives.causal_lm(Output(some(1), some(1, 2, 11)), torch.tensor([[3, 11]]), 2)
    with pytest.raises(ValueError, match=r"labels of shape \(1, 3\) .* logits \(1, 2, 11\)"):
        objectives.causal_lm(Output(some(1), some(1, 2, 11)), torch.tensor([[3, 1, 1]]), 2)


def test_next_tokens_leave_padding_out_on_both_sides():
    ids = torch.tensor([[5, 6, 7, 0, 0], [0, 0, 5, 6, 7]])
    assert objectives.next_tokens(ids, (ids > 0).long()).tolist() == [
        [6, 7, -100, -100, -100],
        [-100, -100, 6, 7, -100],
    ]
    assert objectives.next_tokens(ids)[0].tolist() == [6, 7, 0, 0, -100]


def test_cutting_a_step_into_batches_of_unequal_padding_changes_neither_loss_nor_gradient():
    model = af.build("gpt", "tiny", seed=0)
    ids = torch.randint(1, 128, (6, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate((12, 3, 9, 1, 12, 5)):
        mask[row, length:] = 0
    labels = objectives.next_tokens(ids, mask)
    total = objectives.counted(labels)

    def run(*parts):
        model.zero_grad()
        losses = []
        for rows in parts:
            losses.append(objectives.causal_lm(model(ids[rows], attention_mask=mask[rows]), labels[rows], total))
            losses[-1].backward()
        return sum(loss.item() for loss in losses), [p.grad.clone() for p in model.parameters()]

    loss, gradients = run(slice(0, 6))
    cut_loss, cut = run(slice(0, 1), slice(1, 4), slice(4, 6))
    assert cut_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(cut, gradients, rtol=1e-4, atol=1e-7)


def test_auxiliary_losses_count_by_their_share():
    loss, output = torch.tensor(2.0), Output(some(1), aux={"a": torch.tensor(0.5), "b": torch.tensor(0.25)})
    assert float(objectives.with_auxiliary(loss, output, 0.5)) == pytest.approx(2.375)
    assert objectives.with_auxiliary(loss, Output(some(1)), 0.5) is loss


def test_schedule_rises_falls_and_ends():
    rates = [warmup_cosine(step, 100, 1.0, 10, 0.1) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3]) and rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:])) and rates[-1] == pytest.approx(0.1)
    assert rates[10 + 44] == pytest.approx(0.1 + 0.9 * (1 + np.cos(np.pi * 44 / 89)) / 2)
    assert warmup_cosine(2, 3, 1.0, 10, 0.1) == pytest.approx(0.3)  # a run that ends inside its warm-up


@pytest.mark.parametrize("name", af.names())
def test_matrices_decay_and_nothing_else(name):
    model = af.build(name, "tiny")
    paths = {id(p): path for path, p in model.named_parameters()}
    decay, rest = ([paths[id(p)] for p in group["params"]] for group in optim.groups(model, 0.1))
    assert sorted(decay + rest) == sorted(paths.values())
    assert decay and all(path.endswith(".weight") for path in decay)
    never = ("bias", "A_log", "skip", "cls", "positions", "bias.table")
    assert not [p for p in decay if p.endswith(never) or "norm" in p or "embed.tokens" in p or "embed.types" in p]
    assert not [p for p in rest if dict(model.named_parameters())[p].ndim > 1 and ".blocks." in p and "A_log" not in p]


def test_frozen_model_is_an_error():
    model = af.build("gpt", "tiny").requires_grad_(False)
    with pytest.raises(ValueError, match="trainable"):
        optim.groups(model, 0.1)


def test_moments_of_another_model_are_refused():
    small, large = af.build("gpt", "tiny"), af.build("gpt", "tiny", dim=64)
    for model in (small, large):
        model(torch.tensor([[1, 2]])).logits.sum().backward()
    first, second = (optim.adamw(m, 1e-3, (0.9, 0.95), 0.0) for m in (small, large))
    first.step()
    with pytest.raises(ValueError, match="does not fit this model"):
        optim.restore_moments(second, large, optim.moments(first, small))
