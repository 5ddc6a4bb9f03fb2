"""What a block does with its branches: scale, DeepNorm; additive pooling; masks that hide everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.core.init import initialise
from anyformer.core.recipe import Recipe
from anyformer.parts import (
    MLP,
    AdditivePool,
    Attention,
    Block,
    Causal,
    Full,
    Global,
    LayerNorm,
    LayerScale,
    Random,
    Strided,
    Times,
    Window,
    deepnorm,
)
from anyformer.parts.attention.masks import Mask
from tests.parts.mixing import flow, made

BLOCK = Block.of(mixer=Attention.of(heads=3), ffn=MLP.of(hidden=20), norm=LayerNorm.of())


@pytest.mark.parametrize("wiring", ["pre", "post", "sandwich", "parallel"])
def test_the_sum_is_the_formula(wiring: str) -> None:
    stream = 1.0 if wiring == "parallel" else 1.7
    block = made(BLOCK.but(wiring=wiring, stream=stream, scale=LayerScale.of()))
    x, f = torch.randn(2, 5, 12, dtype=torch.float64), flow(5)
    source = y = x
    for name in ("mixer", "ffn"):
        branch, norm, weight = getattr(block, name), block.norm[name], block.scale[name].weight
        if wiring == "post":
            y = norm(stream * y + weight * branch(y, f))
        elif wiring == "sandwich":
            y = stream * y + weight * block.norm[f"{name}_out"](branch(norm(y), f))
        else:
            y = stream * y + weight * branch(norm(source if wiring == "parallel" else y), f)
    torch.testing.assert_close(block(x, f), y)
    plain = BLOCK.but(wiring=wiring).build(12).double()
    plain.load_state_dict({n: p for n, p in block.state_dict().items() if not n.startswith("scale")})
    if wiring != "parallel":
        block.stream = 1.0
    with torch.no_grad():
        for scale in block.scale.values():
            scale.weight.fill_(1.0)
    torch.testing.assert_close(block(x, f), plain(x, f))  # factors of 1 are nothing
    with torch.no_grad():
        for scale in block.scale.values():
            scale.weight.zero_()
    if wiring != "post":
        torch.testing.assert_close(block(x, f), x)  # ReZero, at first: the stream alone


def test_a_page_takes_layer_scale_and_multipliers_by_one_line(tmp_path: object) -> None:
    recipe = af.recipe("llama", "tiny").but({"blocks.*.scale": LayerScale.of(start=0.1)})
    model, ids = af.build(recipe, seed=0).eval(), torch.arange(9)[None]
    fixed = af.recipe("llama", "tiny").but({"blocks.*.scale": Times.of(0.1)}).build().eval()
    fixed.load_state_dict({n: p for n, p in model.state_dict().items() if ".scale." not in n})
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, fixed(ids).logits)
    model.save(tmp_path)
    assert af.load(str(tmp_path)).recipe == recipe
    assert "blocks.1.scale.ffn.weight" in model.state_dict()


def test_deepnorm_is_the_papers() -> None:
    """alpha and beta of its table; weights of v, o and the MLP smaller by beta at first, those of q and k not."""
    assert deepnorm(8) == {"wiring": "post", "stream": 2.0, "gain": 64**-0.25}
    models = [
        af.recipe("gpt", "tiny", depth=8).but({f"blocks.*.{n}": v for n, v in options.items()}).build()
        for options in (deepnorm(8), {**deepnorm(8), "gain": 1.0})
    ]
    for model in models:
        initialise(model, seed=0, scheme="xavier")
    for (name, ours), plain in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        smaller = name.endswith("weight") and name.split(".")[-2] in ("v", "o", "up", "down")
        torch.testing.assert_close(ours, 64**-0.25 * plain if smaller else plain)
    initialise(models[0], seed=0, scheme="xavier")  # drawn anew, not made smaller again
    again = models[0].state_dict()["blocks.0.mixer.v.weight"]
    torch.testing.assert_close(again, 64**-0.25 * models[1].state_dict()["blocks.0.mixer.v.weight"])


def test_deepnorm_tames_a_deep_post_norm_stack() -> None:
    """The point of the paper: at 64 blocks one step of training changes the output less than without it at 4."""

    def change(depth: int, options: dict[str, Any]) -> float:
        recipe = af.recipe("gpt", "tiny", depth=depth).but({f"blocks.*.{n}": v for n, v in options.items()})
        model = recipe.build().eval()
        initialise(model, seed=0, scheme="xavier")
        ids = torch.randint(0, 128, (2, 16), generator=torch.Generator().manual_seed(0))
        before = model(ids).hidden
        model(ids).logits.logsumexp(-1).mean().backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith("blocks"):
                    parameter -= 1e-4 * parameter.grad.sign()
            return float((model(ids).hidden - before).norm() / before.norm())

    plain = [change(depth, {"wiring": "post"}) for depth in (4, 64)]
    deep = change(64, deepnorm(64))
    assert deep < plain[0] < plain[1] / 5  # here 0.03, 0.05 and 0.53
    assert deep < plain[1] / 10


def test_what_a_block_refuses() -> None:
    with pytest.raises(ValueError, match="wiring 'parallel' has one"):
        BLOCK.but(wiring="parallel", stream=2.0).build(12)
    with pytest.raises(ValueError, match="depth, the number of blocks"):
        deepnorm(0)


def test_additive_pooling_is_its_formula_and_ignores_padding() -> None:
    pool, x = made(AdditivePool.of(hidden=7)), torch.randn(2, 6, 12, dtype=torch.float64)
    keep = torch.tensor([[True] * 6, [False, False, True, True, True, False]])
    f = flow(6, causal=False, keep=keep)
    found = pool(x, f)
    for row in range(2):
        real = x[row, keep[row]]
        a = torch.stack([pool.query.weight[0] @ torch.tanh(pool.key(t)) for t in real]).softmax(0)
        torch.testing.assert_close(found[row], a @ real)
    torch.testing.assert_close(found[:1], pool(x[:1], flow(6, causal=False)))
    assert not pool(x, flow(6, keep=torch.zeros_like(keep))).any()
    with torch.no_grad():
        pool.query.weight.zero_()
    torch.testing.assert_close(pool(x, f)[1], x[1, 2:5].mean(0))
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        AdditivePool.of(hidden=0).build(12)


def test_gradient_of_additive_pooling() -> None:
    pool, x = made(AdditivePool.of(hidden=3), dim=4), torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    names, values = zip(*pool.named_parameters(), strict=True)

    def call(x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(pool, dict(zip(names, given, strict=True)), (x, flow(5, False, keep)))

    assert torch.autograd.gradcheck(call, (x, *values))


def test_a_classifier_that_pools_additively(tmp_path: object) -> None:
    recipe = af.recipe("bert", "tiny", task="classify", classes=3).but(pool=AdditivePool.of())
    model, ids = af.build(recipe, seed=0).eval(), torch.arange(9)[None]
    with torch.no_grad():
        logits = model(ids).logits
        with af.Taps(model, "pool.weights") as taps:
            assert torch.equal(model(ids).logits, logits)
    torch.testing.assert_close(taps["pool.weights"].sum(-1), torch.ones(1))
    model.save(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(af.load(str(tmp_path))(ids).logits, logits)


@pytest.mark.parametrize("mask", [~Full(), Window(3) & ~Window(4), Causal() & ~Window(0, 0) & Window(0, 2)], ids=str)
def test_a_mask_that_hides_everything_is_named(mask: Mask) -> None:
    with pytest.raises(ValueError, match=r"hides every token from every token, itself included; Window\(0\)"):
        Attention.of(heads=3, mask=mask).build(12)
    recipe = af.recipe("bert", "tiny")
    with pytest.raises(ValueError, match="hides every token"):
        recipe.but({"blocks.*.mixer.mask": mask}).build()


def test_a_mask_that_hides_everything_in_a_decoder_is_named() -> None:
    mask = ~Causal()
    Attention.of(heads=3, mask=mask).build(12)(torch.randn(1, 4, 12), flow(4, causal=False))  # the future alone: fine
    model = af.recipe("llama", "tiny").but({"blocks.*.mixer.mask": mask}).build()
    with pytest.raises(ValueError, match=r"the mask \(Causal\(\) & ~Causal\(\)\) hides every token"):
        model(torch.arange(4)[None])


@pytest.mark.parametrize("mask", [
    Window(0), ~Window(9, 9), Strided(7) & Strided(5) & ~Window(11), ~Global(3), Random(2, 1) & ~Global(2),
    Strided(31) & ~Window(40), Window(1 << 40),
], ids=str)  # fmt: skip
def test_a_mask_that_shows_something_somewhere_is_not_refused(mask: Mask) -> None:
    Attention.of(heads=3, mask=mask).build(12)


def test_a_window_of_0_is_named() -> None:
    with pytest.raises(ValueError, match=r"got left=-1.*at least 1, is Window\(w - 1\)"):
        af.build("llama", "tiny", window=0)


def test_every_recipe_here_is_kept() -> None:
    recipe = BLOCK.but(scale=Times.of(0.5), stream=1.5, gain=0.5)
    assert Recipe.from_json(recipe.to_json()) == recipe
