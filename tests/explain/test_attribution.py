"""Attribution: complete on every page, exact zeros where nothing is seen, and the numbers of captum."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.compress import few
from anyformer.core import pages
from anyformer.explain import Contrast, attribute, neurons, patch, roles
from anyformer.explain.features import Explained
from anyformer.parts.quantised import GridTable
from tests.later import later

JUMPS = {"jamba": "experts", "memorizing": "nearest", "mixtral": "experts", "switch": "experts"}
BENT = {"detr", "vit_hybrid"}  # convolutions with ReLU: more bends than points
REFUSED = {"alphafold2", "esmfold", "musicgen"}  # ids that are looked up in several tables
PAGES = [n for n in pages.names() if n not in REFUSED]
SLOW = {
    "dvae",
    "mixtral",
    "autoformer",
    "compressive",
    "conformer",
    "hubert",
    "informer",
    "omni",
    "transformerxl",
    "wav2vec2",
    "jamba",
    "memorizing",
}
DRAWS = 24  # of weights and inputs
QUICK = [n for n in PAGES if n not in SLOW | BENT | {"switch", "flamingo", "swin"}]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def _call(name: str, rows: int = 1) -> tuple[Any, dict[str, Tensor]]:
    model = af.build(name, "tiny", seed=0).eval()
    return model, model.complete(model.example(rows, {}, torch.Generator().manual_seed(0)))


def _mixed(out: Any) -> Tensor:
    """A fixed mixture of all outputs: a target for any page."""
    x = (out.hidden if out.logits is None else out.logits).flatten(1)
    return x @ torch.randn(x.shape[1], generator=torch.Generator().manual_seed(1)).to(x)


def _target(model: Any) -> Any:
    """The highest score where a page has one for each row or position."""
    return None if model.reads_text or model.page in ("vit", "swin", "graphormer") else _mixed


@pytest.mark.parametrize("name", [*QUICK, *later(*(n for n in PAGES if n not in QUICK))])
def test_integrated_gradients_are_complete_or_say_why(name):
    model, call = _call(name)
    model.page = name
    if name in JUMPS or name in BENT:
        with pytest.raises(ValueError, match="the score jumps by .*occlusion" if name in JUMPS else "pass more points"):
            attribute(model, call, _target(model))
        return
    made = attribute(model, call, _target(model))
    change = (made.score - made.base).abs()
    assert made.points % 8 == 0 and float(made.residual.abs()) <= 1e-3 * max(
        float(change), 0.05 * float(made.score.abs())
    )
    torch.testing.assert_close(sum(v.double().sum() for v in made.values.values()), made.total[0], rtol=1e-4, atol=1e-5)
    for feature in Explained(model, call).features.values():
        assert (
            made.values[feature.name].shape[1:] == feature.shape()
            and made.each[feature.name].shape == feature.value.shape
        )


@pytest.mark.parametrize("name", [*QUICK, *later(*(n for n in PAGES if n not in QUICK))])
@pytest.mark.parametrize("method", ["grad", *later("occlusion")])
def test_every_page_has_shares(name, method):
    model, call = _call(name)
    model.page = name
    before = _mixed(model(**call)) if name not in ("dvae", "informer", "autoformer") else None
    made = attribute(model, call, _target(model), method)
    assert all(v.isfinite().all() for v in made.values.values())
    assert any(v.any() for v in made.values.values()) or name in ("dit", "mmdit")  # whose last layers are 0 at first
    assert before is None or torch.equal(before, _mixed(model(**call)))  # explaining leaves nothing behind
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("method", ["grad", "ig", "occlusion"])
@pytest.mark.parametrize("name", [n for n in ("llama", "bert", "mamba", "bart") if n in pages.names()])
def test_a_padded_batch_is_explained_as_its_rows_alone(name, method):
    model = af.build(name, "tiny", seed=0).eval()
    rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    ids, keep = torch.tensor([rows[0], rows[1] + [0] * 3]), torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    start = {"decoder_input_ids": torch.full((2, 1), 1)} if model.reads_source else {}
    at = None if model.generates else 1
    both = attribute(model, {"input_ids": ids, "attention_mask": keep, **start}, 9, method, at=at)
    assert not both.values["input_ids"][1, 3:].any()  # padding: exactly 0
    for i, row in enumerate(rows):
        alone = {n: v[i : i + 1] for n, v in start.items()}
        solo = attribute(model, {"input_ids": torch.tensor([row]), **alone}, 9, method, at=at)
        near = 2e-3 * float((solo.score - solo.base).abs()) if method == "ig" else 1e-5
        torch.testing.assert_close(
            both.values["input_ids"][i, : len(row)], solo.values["input_ids"][0], rtol=1e-4, atol=max(near, 1e-5)
        )


@pytest.mark.parametrize(
    "name", [*(n for n in ("gpt", "llama", "mamba2", "linear") if n in pages.names()), *later("performer", "gemma3")]
)
@pytest.mark.parametrize("method", ["grad", "ig", "occlusion"])
def test_what_a_decoder_cannot_see_has_no_share(name, method):
    model, call = _call(name)
    made = attribute(model, call, 7, method, at=5)
    assert made.values["input_ids"][0, :6].abs().sum() > 0
    assert not made.values["input_ids"][0, 6:].any()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_page_without_a_rule_says_which_part(name):
    with pytest.raises(ValueError, match=r"input_ids: \w+ has no single table of tokens"):
        attribute(*_call(name), _mixed)


def test_a_contrast_is_the_difference_of_two_targets():
    model, call = _call("llama")
    a, b = (attribute(model, call, i, "grad").values["input_ids"] for i in (7, 9))
    made = attribute(model, call, Contrast(7, 9), "grad")
    torch.testing.assert_close(made.values["input_ids"], a - b)
    assert made.target == "7 - 9"


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_the_way_back_has_the_opposite_shares(name):
    """From x to b the shares are those from b to x with the other sign."""
    model, call = _call(name)
    there = attribute(model, call, 3, baseline="mean", at=0 if name == "bert" else None)
    main = next(iter(there.values))
    explained = Explained(model, call)
    base = explained.baseline("mean")[main]
    if name == "vit":
        back = attribute(model, {main: base}, 3, baseline=call[main])
    else:  # the token table's rows are the features, so the way back is made by hand
        feature = explained.features[main]
        explained.features[main] = type(feature)(feature.name, base, feature.axes, feature.table)
        from anyformer.explain.integral import integrated
        from anyformer.explain.target import goal

        aim = there.goal or goal(model, model(**call), 3)
        each, _ = integrated(explained, aim, {main: feature.value}, (there.score, there.base), 1e-3, 512)
        torch.testing.assert_close(each[main], -there.each[main], rtol=2e-3, atol=2e-3 * float(there.score.abs()))
        return
    torch.testing.assert_close(back.each[main], -there.each[main], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_captum_has_the_same_integrated_gradients(name):
    captum = pytest.importorskip("captum.attr")
    model, call = _call(name, rows=2)
    main, at = next(iter(call)), None if name == "vit" else 4
    made = attribute(model, call, 3, baseline="zeros", at=at, tolerance=1e9)  # 8 points
    explained = Explained(model, call)
    assert made.points == 8

    def score(x: Tensor) -> Tensor:
        rows = call if len(x) == 2 else {n: v.repeat(len(x) // 2, *[1] * (v.ndim - 1)) for n, v in call.items()}
        logits: Any = Explained(model, rows).run({main: x}).logits
        return logits[:, 3] if at is None else logits[:, at, 3]

    value = explained.features[main].value
    theirs = captum.IntegratedGradients(score).attribute(value, torch.zeros_like(value), n_steps=8)
    torch.testing.assert_close(made.each[main], theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    slopes = captum.InputXGradient(score).attribute(value.clone().requires_grad_())
    ours = attribute(model, call, 3, "grad", at=at, baseline="zeros").each[main]
    torch.testing.assert_close(ours, slopes, rtol=1e-5, atol=1e-5 * float(slopes.abs().max()))


def _alike(name: str, method: str, seeds: Any) -> float:
    """The mean rank correlation of the maps that two models have of the same input, over inputs and models."""
    found = []
    for seed in range(DRAWS):
        ranks = []
        for own in seeds(seed):
            model = af.build(name, "tiny", seed=own).eval()
            call = model.complete(model.example(1, {}, torch.Generator().manual_seed(seed)))
            at = 5 if name == "bert" else None
            made = attribute(model, call, 3, method, at=at, tolerance=0.05, points=2000).values[model.takes].flatten()
            ranks.append(made.argsort().argsort().double())
        found.append(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
    return sum(found) / DRAWS


@pytest.mark.parametrize("method", ["ig", "grad", "occlusion", "relevance"])
@pytest.mark.parametrize("name", ["vit", "bert", *later("llama", "t5", "mamba")])
def test_other_weights_give_another_map(name, method):
    """Adebayo et al. (2018): a map that does not depend on the weights explains nothing. 16 places of one input agree
    by 0.26 by chance, so it is the mean over 24 inputs that has to be below 0.2; a decoder's last token, which every
    weight lets speak most, is a part of it."""
    assert abs(_alike(name, method, lambda seed: (2 * seed, 2 * seed + 1))) < 0.2


def test_the_same_weights_give_the_same_map():
    assert _alike("vit", "grad", lambda seed: (seed, seed)) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["ig", "occlusion", "relevance"])
def test_the_one_token_that_decides_is_first(method):
    """A model whose score is that of one kind of token, whatever stands around it."""
    rng, hits = random.Random(0), 0
    model = af.build("bert", "tiny", seed=0).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.o.weight.mul_(0.1)
        cue, head = 77, model.embed.tokens.weight
        head[cue] *= 12

    def score(out: Any) -> Tensor:
        return (out.hidden @ torch.nn.functional.normalize(head[cue].detach(), dim=0)).sum(1)

    for _ in range(20):
        ids = [rng.randrange(70) for _ in range(10)]
        place = rng.randrange(10)
        ids[place] = cue
        hits += int(attribute(model, ids, score, method).values["input_ids"][0].argmax()) == place
    assert hits >= 19


def test_baselines_have_the_shape_of_the_input():
    model, call = _call("vit")
    for baseline in ("mean", "zeros", "blur", torch.zeros_like(call["pixel_values"])):
        made = attribute(model, call, 3, baseline=baseline)
        assert abs(float(made.residual)) <= 1e-3 * max(float((made.score - made.base).abs()), 0.05)
    pixels = torch.rand(1, 3, 16, 16)
    blurred = Explained(model, {"pixel_values": pixels}).baseline("blur")["pixel_values"]
    assert blurred.std() < 0.3 * pixels.std() and abs(float(blurred.mean() - pixels.mean())) < 0.05
    tokens, call = _call("llama")
    assert attribute(tokens, call, 3, baseline=5).base != attribute(tokens, call, 3, baseline="zeros").base


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("llama", {"target": " Paris"}, "no tokenizer, so the token ' Paris' has no id"),
        ("llama", {"target": 4000}, "class 4000 does not exist: classes go from 0 to 127"),
        ("vit", {"target": "cat"}, "no class 'cat'.*the classes are LABEL_0"),
        ("llama", {"method": "lime"}, "method: expected ig, grad, occlusion, relevance; got 'lime'"),
        ("llama", {"at": 99}, "at=99: there are the positions 0 to 15"),
        ("vit", {"baseline": torch.zeros(2, 2)}, r"baseline of pixel_values: expected the shape \(1, 3, 16, 16\)"),
        ("vit", {"baseline": "pad"}, "baseline 'pad' is one of tokens"),
        ("llama", {"baseline": "blur"}, "baseline 'blur' is one of pictures"),
        ("bert", {"head": "nope"}, "no head 'nope'.*it has mlm, nsp"),
        ("vit_hybrid", {}, "has no head here"),
        ("dit", {}, "neither .* pass a function of the output"),
        ("llama", {"only": ["pixels"]}, "'pixels' is no input to explain; this call has input_ids"),
    ],
)
def test_mistakes_are_named(name, options, said):
    model, call = _call(name)
    with pytest.raises(ValueError, match=said):
        attribute(model, call, **options)


def test_bad_models_and_inputs_are_named():
    model, call = _call("vit")
    with pytest.raises(ValueError, match=r"training mode.*model\.eval"):
        attribute(model.train(), call)
    model.eval()
    with pytest.raises(ValueError, match="pixel_values holds NaN or infinity"):
        attribute(model, {"pixel_values": torch.full_like(call["pixel_values"], torch.nan)})
    with pytest.raises(ValueError, match="reads pixel_values, no text"):
        attribute(model, "a cat")
    with pytest.raises(ValueError, match="reads input_ids, token ids; got numbers"):
        attribute(af.build("llama", "tiny").eval(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="one number for each row"):
        attribute(model, call, lambda out: torch.zeros(1, 1))
    with pytest.raises(ValueError, match="expected a model of anyformer"):
        attribute(torch.nn.Linear(2, 2), call)
    one = attribute(af.build("llama", "tiny", seed=0).eval(), [5])  # a text of one token
    assert one.values["input_ids"].shape == (1, 1)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_in_few_bits_is_explained(bits):
    """Stored whole numbers have shares, and roles, patches and neurons, as the floats that they stand for."""
    model = af.build("llama", "tiny", seed=0).eval()
    few.quantise(model, few.Work("rtn", 8, few.plan(model, bits, 8)))
    assert isinstance(model.embed.tokens, GridTable)
    for method in ("ig", "grad", "occlusion", "relevance"):
        made = attribute(model, [5, 6, 7, 8], 9, method)
        assert made.values["input_ids"].abs().min() > 0
        if method in ("ig", "relevance"):
            assert abs(float(made.residual)) <= 1e-3 * max(abs(float(made.score - made.base)), abs(float(made.score)))
    assert attribute(model, [5, 6], 9, "occlusion", baseline=3).base != attribute(model, [5, 6], 9, "occlusion").base
    assert roles(model, [5, 6, 7, 8, 9]).found and neurons(model, [5, 6, 7], 9).found
    assert patch(model, [5, 6, 7], [5, 9, 7], "blocks.*.mixer.heads").scores


def test_weights_without_slopes_are_named():
    """A matrix whose output has no gradient, as in PyTorch's own whole-number kernels."""
    model = af.build("llama", "tiny", seed=0).eval()
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: out.detach())
    for method in ("ig", "grad", "relevance"):
        with pytest.raises(ValueError, match=r"does not depend on .*gradient"):
            attribute(model, [5, 6, 7], 9, method)
    assert attribute(model, [5, 6, 7], 9, "occlusion").values["input_ids"].any()
