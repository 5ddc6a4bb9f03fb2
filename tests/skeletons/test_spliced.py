"""Media inside a text: each fills its own row's placeholders, a cache can be cut anywhere, and any page can be either
side."""

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.core.recipe import Recipe
from anyformer.edge.export import export
from anyformer.parts import Projector
from anyformer.skeletons import CausalLM, Encoder, Medium, Pyramid, add_media, with_media
from tests.later import later

MARK = 99


def pages(kind: type) -> list[str]:
    """The pages whose `tiny` is of this skeleton."""
    return [name for name in af.names() if issubclass(af.recipe(name, "tiny").part, kind)]


def tower(**changes: Any) -> Recipe:
    return af.recipe("vit", "tiny", image=8, patch=4, depth=1, **changes)


def seeing(text: str = "llama", **options: Any) -> Any:
    """A model whose pictures take 5 positions."""
    medium = Medium.of(**{"token": MARK, "tower": tower(), **options})
    return af.build(with_media(af.recipe(text, "tiny"), image=medium), seed=0).eval()


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def text(*runs: int, length: int = 24) -> list[int]:
    """Tokens 1, 2, 3 … in which a run of so many placeholders begins at every fifth one (or 0 of them)."""
    row, at = list(range(1, length + 1)), 2
    for run in runs:
        row[at : at + run] = [MARK] * run
        at += run + 2
    return row


@torch.no_grad()
def test_rows_have_none_one_or_several_pictures_each_in_its_own_place():
    """Rows together are rows alone; permuted with their pictures, the results are permuted; the order counts."""
    model, px = seeing(), pictures(3)
    ids = torch.tensor([text(5), text(), text(5, 5)])
    together = model(input_ids=ids, pixel_values=px).logits
    torch.testing.assert_close(together[:1], model(input_ids=ids[:1], pixel_values=px[:1]).logits)
    torch.testing.assert_close(together[1:2], model(input_ids=ids[1:2]).logits)
    torch.testing.assert_close(together[2:], model(input_ids=ids[2:], pixel_values=px[1:]).logits)
    turned = model(input_ids=ids[[2, 0, 1]], pixel_values=px[[1, 2, 0]]).logits
    torch.testing.assert_close(turned, together[[2, 0, 1]])
    swapped = model(input_ids=ids, pixel_values=px[[0, 2, 1]]).logits
    assert torch.equal(swapped[0], together[0]) and not torch.allclose(swapped[2], together[2])
    spans = model.inserts({"input_ids": ids, "pixel_values": px})["pixel_values"]
    assert spans.tolist() == [[0, 2, 7], [2, 2, 7], [2, 9, 14]]


@torch.no_grad()
def test_vectors_stand_where_the_placeholders_were():
    """The stream at placeholders is project(tower(pixels)), elsewhere the token's row; and a placeholder is not looked
    up: it can lie outside the vocabulary."""
    model, far = seeing(), seeing(token=10_000)
    far.load_state_dict(model.state_dict())
    entered: list[torch.Tensor] = []
    model.embed.register_forward_hook(lambda module, inputs, output: entered.append(output))
    ids, px = torch.tensor([text(5)]), pictures(1)
    logits = model(input_ids=ids, pixel_values=px).logits
    medium = model.media["image"]
    torch.testing.assert_close(entered[0][:, 2:7], medium.project(medium.tower(pixel_values=px).hidden))
    assert torch.equal(entered[0][:, :2], model.embed.tokens(ids[:, :2]))
    torch.testing.assert_close(far(input_ids=ids.where(ids != MARK, 10_000), pixel_values=px).logits, logits)


PROBLEMS: dict[str, tuple[list[list[int]], int, str]] = {
    "seven and one, where two pictures have four each (trap 18)": (
        [text(9), text(1)], 2, r"row 0 has 9 placeholders of image \(token 99\), and its media make 5 \+ 5 positions"
    ),
    "placeholders without a picture (trap 19)": (
        [text(), text(5)], 0, "row 1 has 5 placeholders of image .* no pixel_values came with the text; pass"
    ),
    "the second row's picture is missing": ([text(5), text(5)], 1, "row 1 has 5 placeholders .* its media make none"),
    "a picture without placeholders": ([text(5)], 2, "1 of 2 media of the kind image are left over.* here 5"),
    "too few": ([text(4)], 1, r"row 0 has 4 placeholders .* make 5 positions"),
    "too many": ([text(6)], 1, r"row 0 has 6 placeholders .* make 5 positions"),
    "a run that ends inside a picture": ([text(3, 2)], 1, "one after another"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_placeholders_that_do_not_match_are_refused_by_row(name):
    rows, count, message = PROBLEMS[name]
    given = {"pixel_values": pictures(count)} if count else {}
    with pytest.raises(ValueError, match=message):
        seeing()(input_ids=torch.tensor(rows), **given)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", *later("mamba", "jamba", "gpt")])
def test_a_cache_cut_inside_a_picture_trimmed_and_reordered_is_the_whole_text(name):
    model, px = seeing(name), pictures(3)
    ids = torch.tensor([text(5, 5), text(5)])
    whole = model(input_ids=ids, pixel_values=px).logits
    state = model.start(2)
    first = model(input_ids=ids[:, :4], pixel_values=px[[0, 2]], state=state).logits  # two of five placeholders
    state.mark()
    model(input_ids=ids[:, 4:12], pixel_values=px[1:2], state=state)  # the second picture begins
    state.trim(4)
    state.reorder(torch.tensor([1, 0, 1]))
    index = [1, 0, 1]
    middle = model(input_ids=ids[index, 4:12], pixel_values=px[1:2], state=state).logits
    end = model(input_ids=ids[index, 12:], state=state).logits
    torch.testing.assert_close(first, whole[:, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat((middle, end), 1), whole[index, 4:], rtol=1e-4, atol=1e-5)
    assert state.bytes() > 0


def test_a_text_cannot_go_on_inside_a_picture_and_a_refusal_leaves_the_cache_as_it_was():
    model, ids = seeing(), torch.tensor([text(5)])
    state = model.start(1)
    with torch.no_grad():
        model(input_ids=ids[:, :4], pixel_values=pictures(1), state=state)
        for wrong in (torch.tensor([[7]]), torch.tensor([[MARK, 7]])):
            with pytest.raises(ValueError, match=r"row 0 has .* before, and its media make 5 positions"):
                model(input_ids=wrong, state=state)
        end = model(input_ids=ids[:, 4:], state=state).logits
        whole = model(input_ids=ids, pixel_values=pictures(1)).logits
    torch.testing.assert_close(end, whole[:, 4:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side):
    """Trap 24: the place of a picture follows from ids and mask, whatever the tokenizer pads."""
    model, px = seeing(), pictures(2)
    short, long = text(5, length=12), text(5, length=20)
    fill, mask = [0] * 8, [0] * 8
    row, keep = (fill + short, mask + [1] * 12) if side == "left" else (short + fill, [1] * 12 + mask)
    both = model(
        input_ids=torch.tensor([row, long]), attention_mask=torch.tensor([keep, [1] * 20]), pixel_values=px
    ).logits
    alone = model(input_ids=torch.tensor([short]), pixel_values=px[:1]).logits
    torch.testing.assert_close(both[0, 8:] if side == "left" else both[0, :12], alone[0])


@pytest.mark.parametrize("name", pages(CausalLM))
def test_any_decoder_reads_pictures_and_its_own_weights_load(name):
    """The text's paths stay: without a picture the model is the decoder, bit for bit."""
    plain: Any = af.build(name, "tiny", seed=3).eval()
    if plain.recipe.part is not CausalLM:
        with pytest.raises(ValueError, match=f"a CausalLM; got a {plain.recipe.part.__name__}"):
            with_media(plain.recipe, image=Medium.of(token=MARK, tower=tower()))
        return
    model: Any = add_media(plain, image=Medium.of(token=MARK, tower=tower()))
    mine = {n for n in model.state_dict() if not n.startswith("media.")}
    assert mine == set(plain.state_dict()) and not model.training
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
        seen = model(input_ids=torch.tensor([text(5, length=12)]), pixel_values=pictures(1)).logits
    assert not torch.allclose(seen[:, 7:], plain(input_ids=ids).logits[:, 7:])


@torch.no_grad()
@pytest.mark.parametrize("name", sorted({*pages(Encoder), *pages(Pyramid)}))
def test_any_encoder_is_a_tower(name):
    """Of pictures, or of other texts, whose padding takes no positions."""
    medium = Medium.of(token=MARK, tower=af.recipe(name, "tiny"))
    model: Any = af.build(with_media(af.recipe("llama", "tiny", context=256), image=medium), seed=0).eval()
    part = model.media["image"]
    given = part.tower.example(2, {}, torch.Generator().manual_seed(0))
    named = {part.prefix + n: v for n, v in given.items()}
    if "input_ids" in given:
        assert part.prefix == "image_"
        mask = torch.ones_like(given["input_ids"])
        mask[1, 9:] = 0
        named |= {"image_attention_mask": mask}
    sizes = part.lengths(part.own(named))
    rows = [[1, 2, *[MARK] * size, 3, 4] for size in sizes]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    keep = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    both = model(input_ids=ids, attention_mask=keep, **named).logits
    for i, row in enumerate(rows):
        alone = {n: v[i : i + 1] for n, v in named.items()}
        one = model(input_ids=torch.tensor([row]), **alone).logits
        torch.testing.assert_close(both[i, : len(row)], one[0], rtol=1e-4, atol=1e-5)
    assert "input_ids" not in given or sizes[1] < sizes[0]


@torch.no_grad()
def test_two_kinds_of_media_in_one_text():
    """Each has its own placeholder; the order in the text is free."""
    other = Medium.of(token=98, tower=af.recipe("bert", "tiny"))
    recipe = with_media(af.recipe("llama", "tiny"), image=Medium.of(token=MARK, tower=tower()), note=other)
    model: Any = af.build(recipe, seed=0).eval()
    note = torch.tensor([[5, 6, 7]])
    ids = torch.tensor([[1, 98, 98, 98, 2, *[MARK] * 5, 3]])
    given = {"input_ids": ids, "pixel_values": pictures(1), "note_input_ids": note}
    whole = model(**given).logits
    assert set(model.inserts(given)) == {"pixel_values", "note_input_ids"}
    without = model(input_ids=ids[:, :5], note_input_ids=note).logits
    torch.testing.assert_close(whole[:, :5], without)
    drawn = model.example(2, {"": (30,)}, torch.Generator().manual_seed(0))
    assert (drawn["input_ids"] == 98).any() and (drawn["input_ids"] == MARK).any()
    model(**drawn)


@torch.no_grad()
def test_a_program_with_media_takes_other_batches_and_texts(tmp_path):
    model = seeing()
    example = model.example(2, {"": (9,)}, torch.Generator().manual_seed(0))
    report = export(model, tmp_path / "model.pt2", example)
    assert "pixel_values" in report.inputs and report.difference < 1e-4


BAD: dict[str, tuple[Any, str]] = {
    "no media": (lambda: with_media(af.recipe("llama", "tiny")).build(), "needs media with a placeholder each"),
    "one token twice": (
        lambda: with_media(
            af.recipe("llama", "tiny"), a=Medium.of(token=1, tower=tower()), b=Medium.of(token=1, tower=tower())
        ).build(),
        r"got the tokens \[1, 1\]",
    ),
    "a decoder as a tower": (
        lambda: seeing(tower=af.recipe("llama", "tiny")), "tower must be an encoder, .* got a CausalLM",
    ),
    "a token below 0": (lambda: seeing(token=-1), "token is -1"),
    "a cut below 0": (lambda: seeing(cut=-1), "cut is -1"),
    "an encoder as the text": (lambda: with_media(af.recipe("bert", "tiny")), "a CausalLM; got a Encoder"),
    "another kind of projector": (lambda: seeing(project=tower()), "Medium.project: expected a recipe of a Bridge"),
    "an activation": (lambda: seeing(project=Projector.of(act="swoosh")), "Projector: act must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_built_is_refused(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
