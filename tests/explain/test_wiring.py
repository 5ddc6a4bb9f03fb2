"""Drawings of wiring and masks, and what differs between recipes."""

import re

import pytest

from anyformer.core import pages
from anyformer.explain.diff import Difference, differences
from anyformer.explain.wiring import draw, draw_mask, seen
from anyformer.parts import Causal, Full, Window

pytest.importorskip("matplotlib", reason="drawings need matplotlib")


def recipe(name, size="tiny", **changes):
    page = pages.page(name)
    return page.recipe(page.at(size, **changes))


@pytest.mark.parametrize("name", pages.names())
def test_every_page_is_drawn_with_all_its_parts(name, tmp_path):
    drawn = re.sub(r"<[^>]+>", "\n", draw(recipe(name), tmp_path / "x.svg", name).read_text())
    inside = ("embed.model.",)  # a model as front-end is one box
    blocks = [
        v for p, v in recipe(name).walk() if re.fullmatch(r"([\w.]+\.)?blocks\.\d+", p) and not p.startswith(inside)
    ]
    for block in blocks:
        for branch in ("mixer", "cross", "ffn"):
            if block.options.get(branch) is not None:
                assert f"{branch}: {block.options[branch].part.__name__}" in drawn
    heads = recipe(name).options.get("heads") or {"head": recipe(name).options.get("head")}
    for label, head in heads.items():
        assert head is None or f"{label}: {head.part.__name__}" in drawn


def test_the_stages_of_a_pyramid_are_drawn_in_a_row_with_a_merge_between_them(tmp_path):
    drawn = re.sub(r"<[^>]+>", "\n", draw(recipe("swin"), tmp_path / "x.svg").read_text())
    order = ("embed: PatchGrid", "stage 0", "shift=1", "merge: Merge", "stage 1", "norm: LayerNorm", "pool: Mean")
    places = [drawn.index(label) for label in order]
    assert places == sorted(places) and drawn.count("merge: Merge") == 1
    assert seen(recipe("swin")) == {}  # windows of cells are no mask of tokens in a row


def test_an_encoder_of_sound_begins_with_its_own_front_end(tmp_path):
    drawn = re.sub(r"<[^>]+>", "\n", draw(recipe("whisper"), tmp_path / "x.svg").read_text())
    order = ("encoder", "embed: Mels", "decoder", "embed: Tokens", "head: Logits")
    positions = [drawn.index(label) for label in order]
    assert positions == sorted(positions) and "source:" not in drawn


def test_a_decoder_of_queries_begins_with_them(tmp_path):
    drawn = re.sub(r"<[^>]+>", "\n", draw(recipe("detr"), tmp_path / "x.svg").read_text())
    order = ("encoder", "embed: Features", "decoder", "queries: Queries", "boxes: Boxes")
    positions = [drawn.index(label) for label in order]
    assert positions == sorted(positions) and drawn.count("embed: Features") == 1


def test_masks_are_those_of_the_skeleton_and_the_part():
    assert seen(recipe("bert")) == {"blocks.0.mixer and 1 more": Full()}
    assert seen(recipe("t5")) == {"encoder.blocks.0.mixer and 1 more": Full(),
                                  "decoder.blocks.0.mixer and 2 more": Causal()}  # fmt: skip
    assert seen(recipe("gemma3")) == {"blocks.0.mixer": Causal() & Window(6), "blocks.1.mixer": Causal()}
    assert seen(recipe("mamba")) == {}


def test_a_mask_draws_itself_and_other_kinds_of_files_are_refused(tmp_path):
    pixels = pytest.importorskip("PIL.Image").open(draw_mask(Window(3), tmp_path / "a" / "m.png")).convert("RGB")
    dark = sum(n for n, colour in pixels.getcolors(1 << 20) if colour[2] - colour[0] > 60)
    inch = 120 * 1.9
    assert dark / inch**2 == pytest.approx(Window(3).kept(32), rel=0.1)
    with pytest.raises(ValueError, match=r"a drawing is written as .svg, .png, .pdf; got 'm.gif'"):
        draw_mask(Window(3), "m.gif")


def test_a_recipe_does_not_differ_from_itself():
    for name in pages.names():
        assert differences(recipe(name), recipe(name)) == []


def test_differences_are_options_of_equal_parts_and_whole_parts_otherwise():
    found = differences(recipe("llama"), recipe("mixtral"))
    ffn = next(d for d in found if d.path == "blocks.0-1.ffn")
    assert ffn.one.startswith("GatedMLP.of(") and ffn.other.startswith("MoE.of(") and not ffn.size
    assert Difference("blocks.0-1.mixer.positions.theta", "10000.0", "1000000.0", True) in found
    assert not any(d.path.endswith(".heads") for d in found)


def test_layers_that_differ_are_named_and_lists_of_other_lengths_too():
    deep = recipe("llama", depth=5)
    changed = deep.but({"blocks.2.mixer.mask": Window(3)})
    assert differences(deep, changed) == [Difference("blocks.2.mixer.mask", "None", "Window(left=3, right=0)", False)]
    assert differences(deep, recipe("llama", depth=3)) == [Difference("blocks", "5 of them", "3 of them", True)]
    assert differences(recipe("bert"), recipe("llama"))[0] == Difference("model", "Encoder", "CausalLM", False)


def test_the_decoder_of_a_model_inside_is_causal():
    masks = {path.split(" ")[0]: str(mask) for path, mask in seen(recipe("rag")).items()}
    assert masks == {"question.blocks.0.mixer": "Full()", "generator.decoder.blocks.0.mixer": "Causal()"}
