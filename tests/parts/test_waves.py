"""Waveforms: a row of a padded batch is the row alone, and only right inputs are read."""

from __future__ import annotations

import pytest
import torch

import anyformer as af
from anyformer.parts.sound.heads import Quantiser
from anyformer.parts.sound.waves import RowNorm, Waves

torch.set_num_threads(1)
SMALL = Waves.of((4, 6), (5, 3), (3, 2), hides=True)


def test_frames_of_every_length_are_those_of_the_convolutions() -> None:
    waves = SMALL.build(8)
    for count in range(1, 40):
        layers = count
        for kernel, stride in ((5, 3), (3, 2)):
            layers = max(0, (layers - kernel) // stride + 1)
        if layers:
            assert waves.length({"input_values": torch.zeros(1, count)}) == layers
            assert waves.least(layers) <= count < waves.least(layers + 1)
        else:
            with pytest.raises(ValueError, match=f"{count} samples, and one frame needs 11"):
                waves.length({"input_values": torch.zeros(1, count)})


def test_group_norm_over_own_frames_is_the_group_norm_of_the_row_alone() -> None:
    norm, x, counts = RowNorm(3), torch.randn(2, 3, 9), torch.tensor([9, 4])
    torch.testing.assert_close(norm(x, counts)[1, :, :4], norm(x[1:, :, :4], None)[0])
    torch.testing.assert_close(norm(x, counts)[0], norm(x[:1], None)[0])


def test_padding_in_transformers_changes_a_row_and_here_it_does_not() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                         intermediate_size=48, conv_dim=(16,) * 7, num_conv_pos_embeddings=16,
                                         num_conv_pos_embedding_groups=4)  # fmt: skip
    theirs = transformers.Wav2Vec2Model(config).eval()
    ours = af.build("wav2vec2", "mini", task="none", seed=0).eval()
    x, mask = torch.randn(2, 16000), torch.ones(2, 16000, dtype=torch.long)
    x[1, 8000:], mask[1, 8000:] = 0, 0
    with torch.no_grad():
        both, one = ours(input_values=x, attention_mask=mask).hidden, ours(input_values=x[1:, :8000]).hidden
        theirs_both, theirs_one = theirs(x, attention_mask=mask)[0], theirs(x[1:, :8000])[0]
    length = one.shape[1]
    assert float((both[1, :length] - one[0]).abs().max()) < 1e-5
    assert float((theirs_both[1, :length] - theirs_one[0]).abs().max()) > 0.1


def test_padding_on_the_left_is_refused_and_a_row_below_one_frame_sees_nothing() -> None:
    model = af.build("wav2vec2", "tiny", seed=0).eval()
    x, mask = torch.randn(2, 40), torch.ones(2, 40, dtype=torch.long)
    mask[1, :3] = 0
    with pytest.raises(ValueError, match="attention_mask has padding on the left"):
        model(input_values=x, attention_mask=mask)
    mask[1], mask[1, :5] = 0, 1  # 5 samples of 17
    out = model(input_values=x, attention_mask=mask)
    assert out.keep.sum(1).tolist() == [2, 0] and bool(out.logits.isfinite().all())
    torch.testing.assert_close(out.logits[0], model(input_values=x[:1]).logits[0])


def test_frames_are_hidden_where_the_caller_says_and_nowhere_else() -> None:
    model, x = af.build("wav2vec2", "tiny", seed=0), torch.randn(1, 90)
    plain = model.train()(input_values=x).hidden
    torch.testing.assert_close(plain, model.eval()(input_values=x).hidden)  # training hides nothing by itself
    hidden = torch.zeros(plain.shape[:2], dtype=torch.bool)
    hidden[:, 2] = True
    seen = list[torch.Tensor]()
    hook = model.embed.register_forward_hook(lambda _, __, out: seen.append(out))
    for given in ({}, {"hidden_frames": hidden}):
        model(input_values=x, **given)
    hook.remove()
    before, after = seen
    assert not torch.equal(before[:, 2], after[:, 2])
    torch.testing.assert_close(before[~hidden], after[~hidden])


def test_other_inputs_are_refused_by_name() -> None:
    model = af.build("wav2vec2", "tiny", seed=0)
    with pytest.raises(ValueError, match=r"floats of the shape \(batch, samples\), got torch.int64"):
        model(input_values=torch.zeros(1, 40, dtype=torch.long))
    with pytest.raises(ValueError, match=r"hidden_frames must be \(1, 2\), got \(1, 40\)"):
        model(input_values=torch.zeros(1, 40), hidden_frames=torch.zeros(1, 40, dtype=torch.bool))


def test_the_quantiser_takes_the_best_code_and_its_gradient_reaches_the_scores() -> None:
    part, x = Quantiser(6, groups=2, codes=5, width=8).eval(), torch.randn(1, 3, 6)
    vectors, shares = part(x)
    best = part.scores(x).unflatten(-1, (2, 5)).argmax(-1)  # (1, 3, 2)
    table = part.vectors[0].unflatten(0, (2, 5))
    expected = torch.stack([table[g, best[0, :, g]] for g in range(2)], 1).flatten(1)
    torch.testing.assert_close(vectors[0], expected)
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 3, 2))
    vectors.square().sum().backward()
    assert part.scores.weight.grad is not None and bool(part.scores.weight.grad.any())
