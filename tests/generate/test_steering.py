"""Steering: the same with and without a cache on every page that writes, off is off, and mistakes are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.explain import contrast
from anyformer.explain.steering import WAYS, _told
from anyformer.generate import chat, generate, stream
from anyformer.generate.steering import Direction, Steered, blocks_of, read, with_steering
from anyformer.hub.text.tokenizer import Tokenizer
from tests.generate.subjects import each_page, model, names, reading
from tests.generate.test_generate import WARM, rows

EACH_PAGE = pytest.mark.parametrize("name", each_page())


def _direction(m: Any, strength: float = 1.0) -> Direction:
    """A direction at the last block, long enough to change what is written."""
    width = getattr(m, "decoder", m).width
    return Direction(blocks_of(m)[-1], 8 * torch.randn(width, generator=torch.Generator().manual_seed(1)), strength)


@EACH_PAGE
def test_steered_text_is_the_same_with_and_without_a_cache_and_off_is_off(name):
    m = model(name)
    some = rows(m)
    count = min(8, (getattr(m, "context", None) or 64) - max(map(len, some)))
    options: dict[str, Any] = {"max_new_tokens": count, **WARM, "seed": [1, 2, 3, 4]}
    plain = generate(m, some, **options)
    steered = generate(m, some, **options, steer=_direction(m))
    assert steered != plain
    assert steered == generate(m, some, **options, steer=_direction(m), cache=False)
    alone = [generate(m, row, **options | {"seed": i + 1}, steer=_direction(m)) for i, row in enumerate(some)]
    assert steered == alone
    assert plain == generate(m, some, **options, steer=_direction(m, 0.0)) == generate(m, some, **options)
    assert with_steering(m, None) is m and with_steering(m, _direction(m, 0.0)) is m
    assert not any(part._forward_hooks for part in m.modules())


def test_every_page_that_writes_is_among_them():
    pages = {name.split(":")[0] for name in names()}
    assert {"llama", "gpt", "t5", "bart", "mamba", "mamba2", "jamba", "mixtral"} <= pages


def test_scores_are_those_of_the_added_vector():
    """One block's output plus the vector, by hand."""
    m = model("llama:")
    direction = _direction(m, 0.5)
    hook = m.get_submodule(direction.at).register_forward_hook(lambda _, args, out: out + 0.5 * direction.vector)
    wanted = m(torch.tensor([[1, 2, 3]])).logits
    hook.remove()
    assert torch.equal(Steered(m, [direction])(torch.tensor([[1, 2, 3]])).logits, wanted)
    assert not torch.equal(m(torch.tensor([[1, 2, 3]])).logits, wanted)


def test_another_use_between_two_tokens_sees_the_plain_model():
    m = reading()
    plain = generate(m, "the cat", max_new_tokens=6)
    pieces = stream(m, "the cat", max_new_tokens=12, steer=_direction(m, 2.0))
    steered = []
    for piece in pieces:
        steered.append(piece)
        assert generate(m, "the cat", max_new_tokens=6) == plain
    assert "".join(steered) == generate(m, "the cat", max_new_tokens=12, steer=_direction(m, 2.0))
    assert "".join(steered) != generate(m, "the cat", max_new_tokens=12)
    m.tokenizer.template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    said = "".join(chat(m, [{"role": "user", "content": "the cat"}], max_new_tokens=12, steer=_direction(m, 2.0)))
    assert said == "".join(steered)


def test_beams_and_guesses_are_steered_too():
    m = model("llama:")
    for options in ({"num_beams": 3}, {"speculate": "lookup"}):
        some: dict[str, Any] = {"max_new_tokens": 8, **options}
        steered = generate(m, [1, 2, 3, 1, 2], **some, steer=_direction(m))
        assert steered != generate(m, [1, 2, 3, 1, 2], **some)
        if "speculate" in options:
            assert steered == generate(m, [1, 2, 3, 1, 2], max_new_tokens=8, steer=_direction(m))


def test_a_file_holds_the_direction_and_a_strength_can_follow(tmp_path):
    file = tmp_path / "glad.safetensors"
    made = Direction("blocks.1", torch.arange(4.0), 2.0, {"toward": "glad"})
    made.save(file)
    for text, strength in ((str(file), 1.0), (f"{file}:1.5", 1.5), (f"{file}:-2", -2.0)):
        again = read(text)
        assert again.at == "blocks.1" and again.strength == strength and again.made == {"toward": "glad"}
        assert torch.equal(again.vector, 2 * torch.arange(4.0))
    with pytest.raises(ValueError, match=r"expected FILE or FILE:STRENGTH.*got 'much'"):
        read(f"{file}:much")
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "none.safetensors"))
    for data in (b"", b"no tensors at all", file.read_bytes()[:60]):
        file.write_bytes(data)
        with pytest.raises(ValueError, match="content: expected a direction that `anyformer steer` wrote"):
            read(str(file))
    af.build("llama", "tiny").save(tmp_path / "model")
    with pytest.raises(ValueError, match="format: expected 'anyformer direction'"):
        read(str(tmp_path / "model" / "model.safetensors"))


def test_mistakes_are_named():
    m = model("llama:")
    with pytest.raises(ValueError, match=r"'blocks.99' is no place of this model.*did you mean"):
        generate(m, [1, 2], max_new_tokens=2, steer=Direction("blocks.99", torch.zeros(4) + 1))
    with pytest.raises(ValueError, match=r"the direction is 4 numbers, and the output of blocks.0 has width"):
        generate(m, [1, 2], max_new_tokens=2, steer=Direction("blocks.0", torch.zeros(4) + 1))


def test_a_probe_sees_through_what_varies_beside():
    """Vectors that differ in one number, beside another one that varies widely: means mislead, the probe does not."""
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 6, generator=draws) * torch.tensor([0.1, 9.0, 0.1, 0.1, 0.1, 0.1])
    noise[:20, 0] += 1
    apart = {way: WAYS[way](noise[:20], noise[20:]) for way in WAYS}
    angle = {way: float(v[0] / v.norm()) for way, v in apart.items()}
    assert angle["probe"] > 0.95 > angle["mean"]
    told = {way: _told(noise[:20], noise[20:], WAYS[way]) for way in WAYS}
    assert told["probe"] == 1.0 > told["mean"]
    read_by = apart["probe"] / apart["probe"].norm()  # strength 1 moves what the probe reads from one mean to the other
    change = (noise[:20].mean(0) - noise[20:].mean(0)) @ read_by
    torch.testing.assert_close(apart["probe"].norm(), change)


def test_a_contrast_finds_what_differs_and_leads_there():
    """Texts of two letters: the direction orders unseen ones, and raises the letter that it leads to."""
    m = af.build("llama", "tiny", vocab=257, seed=0).eval()
    m.tokenizer = Tokenizer.bytes_level()
    toward = [f"{word} zzz zz" for word in ("cat", "dog", "sun", "sea", "tree", "bee")]
    away = [f"{word} qqq qq" for word in ("cat", "dog", "sun", "sea", "tree", "bee")]
    made = contrast(m, toward, away)
    assert made.told[made.direction.at] == 1.0 and set(made.told) == {"blocks.0", "blocks.1"}
    assert made.length > 0 and made.stream > 0 and made.direction.made is not None
    z, q = (m.tokenizer.encode(c, special=False)[0] for c in "zq")
    ids = torch.tensor([m.tokenizer.encode("the ")])
    score = [Steered(m, [Direction(made.direction.at, made.direction.vector, s)])(ids).logits[0, -1] for s in (-20, 20)]
    assert float((score[1] - score[0])[z] - (score[1] - score[0])[q]) > 0
    back = contrast(m, away, toward, "blocks.0").direction
    torch.testing.assert_close(back.vector, -contrast(m, toward, away, "blocks.0").direction.vector)
    assert contrast(m, toward, away, by="probe").told[made.direction.at] == 1.0
    with pytest.raises(ValueError, match="by must be one of 'mean', 'probe'; got 'svm'"):
        contrast(m, toward, away, by="svm")
    with pytest.raises(ValueError, match="toward: a direction needs at least 4 texts of each kind; got 1"):
        contrast(m, ["a"], away)
    with pytest.raises(ValueError, match="reads pixel_values; a direction is a contrast of texts"):
        contrast(af.build("vit", "tiny").eval(), toward, away)
    for name, at in (("t5", "decoder.blocks.1"), ("mamba", None)):
        other = af.build(name, "tiny", vocab=257, seed=0).eval()
        other.tokenizer = m.tokenizer
        assert contrast(other, toward, away, at).direction.vector.shape == (getattr(other, "decoder", other).width,)
