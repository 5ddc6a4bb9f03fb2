"""First weights by name, and muP's coordinate check: activations keep their size as the width grows."""

import inspect
import math
import pickle
from dataclasses import fields
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.core import pages
from anyformer.core.hyper import leaves
from anyformer.core.init import initialise, tensors
from anyformer.skeletons.decoder import CausalLM
from anyformer.train import Settings, diagnostics, objectives, optim
from anyformer.train.mup import Transfer

torch.set_num_threads(1)
WIDTHS = (32, 128, 512)


def spread(model, path):
    return model.get_submodule(path).weight.detach().std().item()


def test_schemes_have_the_std_that_they_name():
    def made(scheme):
        model = af.build("gpt", "tiny", dim=128, depth=2)
        initialise(model, seed=0, scheme=scheme)
        return model

    normal, depth, xavier = made("normal"), made("depth"), made("xavier")
    assert spread(normal, "blocks.0.ffn.down") == pytest.approx(0.02, rel=0.02)
    assert spread(depth, "blocks.0.ffn.down") == pytest.approx(0.02 / math.sqrt(4), rel=0.02)
    assert spread(xavier, "blocks.0.ffn.down") == pytest.approx(math.sqrt(2 / (128 + 512)), rel=0.02)
    for model in (normal, depth, xavier):
        assert spread(model, "embed.tokens") == pytest.approx(0.02, rel=0.02)
        assert not model.blocks[0].ffn.up.bias.any() and (model.norm.weight == 1).all()


PUBLISHED = [page for page in pages.pages() if hasattr(page.module, "first_weights")]


@pytest.mark.parametrize("page", PUBLISHED, ids=lambda page: page.name)
def test_a_page_gives_sizes_of_weights_that_it_has(page):
    """Each pattern leads somewhere, in `tiny` or in one of the cases."""
    given, found = set(), set()
    for case in [{}, *page.module.CASES.values()]:
        config = page.at("tiny", **case)
        model, sizes = pages.empty(page.recipe(config)), page.module.first_weights(config)
        given |= set(sizes)
        found |= {pattern for pattern in sizes if tensors(model, pattern)}
    assert given == found | ({"head.proj"} if page.name == "t5" else set())  # the cases of t5 are tied


@pytest.mark.parametrize("change", [lambda r: r, lambda r: r.but(dim=64), lambda r: pickle.loads(pickle.dumps(r))])
def test_the_sizes_of_a_page_win_over_the_common_rule_by_default(change):
    recipe = change(af.recipe("t5", "tiny", dim=64, tied=False))
    model = af.build(recipe, seed=0)
    assert spread(model, "embed.tokens") == pytest.approx(1.0, rel=0.05)
    assert spread(model, "head.proj") == pytest.approx(64**-0.5, rel=0.05)
    assert spread(model, "decoder.blocks.1.cross.q") == pytest.approx((64 * 6) ** -0.5, rel=0.1)
    initialise(model, seed=0, scheme="normal")
    assert spread(model, "embed.tokens") == pytest.approx(0.02, rel=0.05)
    initialise(model, seed=0, scheme="mup", factors={"head.proj": 0.5})
    assert spread(model, "head.proj") == pytest.approx(0.01, rel=0.05)


def test_a_cut_has_no_tails_and_a_changed_recipe_may_lack_what_a_page_sizes():
    recipe = af.recipe("modernbert", "tiny")
    tokens = af.build(recipe, seed=0).embed.tokens.weight.detach()
    assert 0.035 < tokens.abs().max() <= 0.04 and tokens.std() == pytest.approx(0.0176, rel=0.05)
    other = af.build(recipe.but({"blocks.*.mixer": af.parts.Fourier.of()}), seed=0)
    assert other.embed.tokens.weight.abs().max() <= 0.04


def test_unknown_scheme_and_mup_without_factors_are_named():
    model = af.build("gpt", "tiny")
    with pytest.raises(ValueError, match="scheme must be one of 'depth', 'normal', 'xavier', 'mup'; got 'he'"):
        initialise(model, scheme="he")
    with pytest.raises(ValueError, match=r"reads factors.*train\.mup\.Transfer"):
        initialise(model, scheme="mup")
    with pytest.raises(ValueError, match="but only one has"):
        Transfer(af.recipe("gpt", "tiny", depth=3), af.recipe("gpt", "tiny"))


def test_factors_are_those_of_the_table():
    sizes = {"dim": 128, "heads": 4, "hidden": 256}
    base = {"dim": 32, "heads": 4, "hidden": 64}
    one = Transfer(af.recipe("llama", "tiny", tied=False, **sizes), af.recipe("llama", "tiny", tied=False, **base))
    assert one.factors["blocks.0.ffn.down"] == pytest.approx(0.5) and one.factors["head.proj"] == 0.25
    assert one.lr_multipliers["blocks.0.ffn.down.weight"] == 0.25 and one.lr_multipliers["head.proj.weight"] == 0.25
    assert "embed.tokens" not in one.factors and one.recipe["blocks.0.mixer.scale"] == pytest.approx(8**0.5 / 32)
    two = Transfer(af.recipe("gpt", "tiny", dim=128), af.recipe("gpt", "tiny", dim=32))
    assert two.recipe["head.scale"] == 0.25
    model = two.build(seed=0)
    assert spread(model, "blocks.0.mixer.q") == pytest.approx(0.01, rel=0.05)
    assert spread(model, "embed.tokens") == pytest.approx(0.02, rel=0.05)
    same = Transfer(af.recipe("gpt", "tiny"), af.recipe("gpt", "tiny"))
    assert same.recipe == af.recipe("gpt", "tiny") and not same.lr_multipliers and not same.factors


@pytest.mark.parametrize("name", af.names())
def test_every_page_can_be_widened_and_learns(name):
    page = af.page(name)
    sizes = leaves(page.sizes["tiny"]).items()
    double: dict[str, Any] = {n: 2 * v for n, v in sizes if v and n.rpartition(".")[2] in ("dim", "hidden")}
    if name == "omni":  # as many pairs as half of a head
        double["text.sections"] = tuple(2 * n for n in page.sizes["tiny"].text.sections)
    if name == "reformer":
        double["axial"] = (*page.sizes["tiny"].axial[:2], *(2 * n for n in page.sizes["tiny"].axial[2:]))
    recipes = af.recipe(name, "tiny", **double), af.recipe(name, "tiny")
    if name == "encodec":
        with pytest.raises(ValueError, match="none differs between these recipes"):
            Transfer(*recipes)
        return
    if name in ("bigbird", "longformer", "linformer", "flamingo", "informer"):
        with pytest.raises(
            ValueError,
            match=r"muP changes the scale of attention, and \w+ at '((encoder.)?blocks.0.mixer|gated.0.cross)' has",
        ):
            Transfer(*recipes)
        return
    transfer = Transfer(*recipes)
    model = transfer.build(seed=0)
    optim.make(model, Settings(1, lr_multipliers=transfer.lr_multipliers))
    assert transfer.lr_multipliers and all(p.isfinite().all() for p in model.parameters())
    assert any("blocks." in path for path in transfer.factors)


def change(name, width, mup, heads):
    """How much the outputs of parts differ after three steps of Adam from what they were: their size, by part."""
    options = {"dim": width, "hidden": 2 * width, "heads": heads(width)}
    if name == "llama":
        options |= {"kv_heads": heads(width), "tied": False}
    wide, base = (
        af.recipe(name, "tiny", **options),
        af.recipe(
            name,
            "tiny",
            **{k: {"dim": WIDTHS[0], "hidden": 2 * WIDTHS[0]}.get(k, v) for k, v in options.items()}
            | {k: heads(WIDTHS[0]) for k in options if "heads" in k},
        ),
    )
    transfer = Transfer(wide, base)
    model = transfer.build(seed=0) if mup else af.build(wide, seed=0)
    multipliers = transfer.lr_multipliers if mup else {}
    optimizer = optim.make(model, Settings(1, lr=1e-2, weight_decay=0.0, lr_multipliers=multipliers))
    ids = torch.randint(0, 128, (4, 32), generator=torch.Generator().manual_seed(0))
    labels = objectives.next_tokens(ids)
    found = {}
    for step in range(4):
        output = model(ids)
        now = {"hidden": output.hidden, "logits": output.logits}
        if step == 0:
            first = {k: v.detach() for k, v in now.items()}
        found = {k: diagnostics.rms(v - first[k]) for k, v in now.items()}
        objectives.causal_lm(output, labels, 4 * 31).backward()
        optimizer.rate(1e-2)
        optimizer.step()
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize("name", ["gpt", "llama"])
@pytest.mark.parametrize("heads", [lambda w: 4, lambda w: w // 8], ids=["wider heads", "more heads"])
def test_coordinate_check(name, heads):
    """With muP the change of the logits in three steps is about the same at 16 times the width; without, it is not."""
    with_mup = [change(name, width, True, heads)["logits"] for width in WIDTHS]
    without = [change(name, width, False, heads)["logits"] for width in WIDTHS]
    assert max(with_mup) / min(with_mup) < 2, with_mup
    assert without[-1] / without[0] > 3, without


DECODERS = [p for p in pages.names() if issubclass(pages.recipe(p).part, CausalLM)]


OF_TEXT = [p for p in DECODERS if hasattr(pages.page(p).sizes["tiny"], "vocab") and p != "dalle"]  # two vocabularies


@pytest.mark.parametrize("page", OF_TEXT)
def test_a_decoder_begins_without_an_opinion(page):
    """With large tokens in a tied head it would be sure that the token just read comes again, and learn no way out."""
    changes: dict[str, Any] = {"placeholder": None} if page == "flamingo" else {}
    model = af.build(page, "mini", vocab=256, seed=0, **changes)
    ids = torch.randint(0, 256, (4, 65), generator=torch.Generator().manual_seed(0))
    logits = model(ids[:, :-1]).logits  # of MusicLM with its codes, too
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() < math.log(logits.shape[-1]) + 0.3


def test_no_hyperparameter_hides_behind_an_option_of_build():
    taken = set(inspect.signature(af.build).parameters) - {"overrides"}
    assert not [(p.name, f.name) for p in pages.pages() for f in fields(p.config) if f.name in taken]
