"""The losses over frames of sound: by all paths, by transformers, and refused where they make no sense."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import anyformer as af
from anyformer.skeletons.base import Output
from anyformer.train.objectives import IGNORE
from anyformer.train.sound_objectives import CTCLoss, MaskedContrast, frames_needed

torch.set_num_threads(1)


def spelt(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """The symbols of a path."""
    return tuple(v for v, _ in itertools.groupby(path) if v != blank)


def test_ctc_is_the_sum_over_all_paths_of_real_frames() -> None:
    blank, T, V = 2, 5, 3
    logits = torch.randn(2, T, V, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 0, 1], [1, IGNORE, IGNORE]])
    keep = torch.ones(2, T, dtype=torch.bool)
    keep[1, 3:] = False
    expected = 0.0
    for row, frames, text in ((0, 5, (0, 0, 1)), (1, 3, (1,))):
        log = logits[row].log_softmax(-1)
        every = itertools.product(range(V), repeat=frames)
        sums = [sum(log[t, v] for t, v in enumerate(path)) for path in every if spelt(path, blank) == text]
        expected -= float(torch.stack(sums).logsumexp(0))  # type: ignore[arg-type]
    loss = CTCLoss(blank)(Output(logits=logits, keep=keep), labels, 4)
    assert math.isclose(float(loss), expected / 4, rel_tol=1e-5)


def test_texts_without_a_path_and_labels_that_are_the_blank_are_refused() -> None:
    logits, loss = torch.zeros(2, 3, 4), CTCLoss(3)
    assert frames_needed(torch.tensor([[1, 1, 2, 2], [1, 2, IGNORE, IGNORE]])).tolist() == [6, 2]
    with pytest.raises(ValueError, match=r"row 1: 2 symbols need at least 3 frames, one each and one between .* has 2"):
        keep = torch.tensor([[True] * 3, [True, True, False]])
        loss(Output(logits=logits, keep=keep), torch.tensor([[0, 1], [1, 1]]), 4)
    with pytest.raises(ValueError, match="row 1: a label is 3, the id of the blank"):
        loss(Output(logits=logits), torch.tensor([[0, 1], [1, 3]]), 4)
    with pytest.raises(ValueError, match="-100 in front of symbols"):
        loss(Output(logits=logits), torch.tensor([[0, 1], [IGNORE, 1]]), 4)
    with pytest.raises(ValueError, match="labels must be 0 to 3"):
        loss(Output(logits=logits), torch.tensor([[0, 1], [1, 4]]), 4)


def test_contrast_and_diversity_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from anyformer.contract.oracle import meet
    from anyformer.contract.subjects import hubs, subjects

    subject = next(s for s in subjects("wav2vec2") if s.name == "wav2vec2/pretrain")
    side = meet(subject, hubs(subject)[0])
    model, B, T, K = side.ours.train(), 2, 9, 3
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(B, model.embed.least(T), generator=noise)
    hidden = torch.zeros(B, T, dtype=torch.bool)
    hidden[0, 1:6], hidden[1, 3:8] = True, True
    labels = torch.full((B, T, K), IGNORE)
    for row in range(B):
        own = hidden[row].nonzero()[:, 0]
        for t in own.tolist():
            others = own[own != t]
            labels[row, t] = others[torch.randint(0, len(others), (K,), generator=noise)]
    torch.manual_seed(2)
    out = model(input_values=x, hidden_frames=hidden)
    objective = MaskedContrast()
    count = objective.counted(labels)
    loss = objective(out, labels, count) + out.aux["diversity"]
    negatives = labels.clamp(min=0) + torch.arange(B)[:, None, None] * T
    torch.manual_seed(2)
    expected = side.theirs.train()(x, mask_time_indices=hidden, sampled_negative_indices=negatives).loss
    assert transformers and int(count) == 10
    torch.testing.assert_close(loss, expected / count)


def test_a_distractor_with_the_targets_codes_is_left_out() -> None:
    context, target = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    target[0, 1] = target[0, 0]
    labels = torch.tensor([[[1, 2], [IGNORE, IGNORE], [IGNORE, IGNORE]]])
    out = Output(heads={"context": context, "target": target})
    cosine = torch.cosine_similarity(context[0, :1], target[0, [0, 2]], dim=-1) / 0.1
    torch.testing.assert_close(MaskedContrast()(out, labels, 1), -cosine.log_softmax(0)[0])


def test_the_diversity_loss_falls_with_the_codes_in_use() -> None:
    model = af.build("wav2vec2", "tiny", task="pretrain", seed=0).train()
    shares = torch.zeros(1, 4, 2, 7)
    head = model.heads["target"]
    shares[..., 0] = 1
    one = head.perplexity(shares, None, None)
    even = head.perplexity(torch.full((1, 4, 2, 7), 1 / 7), None, None)
    torch.testing.assert_close((one, even), (torch.tensor(2.0), torch.tensor(14.0)))
