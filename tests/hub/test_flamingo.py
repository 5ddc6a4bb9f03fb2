"""Pictures between tokens, and a language model that becomes a Flamingo without a change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer.core.init import initialise
from anyformer.core.taps import Taps
from anyformer.generate import generate, stream
from anyformer.hub.processors import ImageProcessor
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.models.clip import Image
from anyformer.models.flamingo import Latents, around
from anyformer.skeletons.interleaved import check_counts

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs" / "idefics"
HOLE = 121  # tiny's placeholder
TOWER = Image(dim=24, depth=1, heads=2, hidden=36, image=8, patch=4, act="gelu")


def built(case: str = "tiny", **changes):
    """A model whose gates are open."""
    model = af.build("flamingo", case, **changes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def logits(model, ids, **inputs):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), **inputs).logits


# ------------------------------------------------------------------------------------------------ what a token sees


def test_a_token_sees_the_last_picture_before_it_and_no_other():
    model, given = built(), pixels(1, 3)
    ids = [[7, HOLE, 8, HOLE, HOLE, 9, 10]]  # two pictures in a row
    base = logits(model, ids, pixel_values=given)
    first_seen = {0: 1, 1: 3, 2: 4}  # picture -> its placeholder
    for picture, at in first_seen.items():
        other = given.clone()
        other[0, picture] = pixels(1, 1, seed=9)[0, 0]
        moved = (logits(model, ids, pixel_values=other) - base).abs().amax(-1)[0]
        assert (moved[:at] == 0).all()  # nothing before it
        assert (moved[at:] > 0).all()  # later ones through the text
    with Taps(model, "gated.0.cross.weights") as taps:
        logits(model, ids, pixel_values=given)
    weights = taps["gated.0.cross.weights"][0].unflatten(-1, (3, 3)).sum(-1)  # (H, T, N), 3 latents each
    seen = torch.tensor([-1, 0, 0, 1, 2, 2, 2])
    assert torch.allclose(weights, F.one_hot(seen + 1, 4)[:, 1:].float().expand_as(weights), atol=1e-6)


def test_text_before_any_picture_gets_nothing():
    model = built()
    with Taps(model, "gated.0.cross") as taps:
        logits(model, [[5, 6, HOLE, 7]], pixel_values=pixels(1, 1))
    assert (taps["gated.0.cross"][0, :2] == 0).all() and (taps["gated.0.cross"][0, 2:] != 0).any(-1).all()
    with Taps(model, "gated.0.cross") as taps:
        logits(model, [[5, 6, 7]])
    assert (taps["gated.0.cross"] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_and_rows_with_fewer_pictures(side):
    model, given = built(), pixels(2, 2)
    rows = [[HOLE, 5, HOLE, 6, 7], [8, HOLE, 9]]
    pad = [HOLE, 0]  # what is under padding is nothing
    ids = [rows[0], [*pad, *rows[1]] if side == "left" else [*rows[1], *pad]]
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1] if side == "left" else [1, 1, 1, 0, 0]])
    which = torch.tensor([[1, 1], [1, 0]])
    both = logits(model, ids, pixel_values=given, image_mask=which, attention_mask=mask)
    torch.testing.assert_close(both[0], logits(model, [rows[0]], pixel_values=given[:1])[0])
    alone = logits(model, [rows[1]], pixel_values=given[1:, :1])[0]
    torch.testing.assert_close(both[1][mask[1].bool()], alone)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_derived_mask_is_that_of_the_published_processor(side):
    idefics = pytest.importorskip("transformers.models.idefics.processing_idefics")

    class Known:
        eos_token_id = 2

        def convert_tokens_to_ids(self, token: str) -> int:
            return HOLE

    model, pad = built(), [0, 0]
    text = [5, HOLE, 6, HOLE, HOLE, 7, 8]
    ids = torch.tensor([[*pad, *text] if side == "left" else [*text, *pad]])
    numbers = idefics.image_attention_mask_for_packed_input_ids(ids, Known(), "pt")[0]
    mask = idefics.incremental_to_binary_attention_mask(numbers, "pt", num_classes=3)
    given, keep = pixels(1, 3), torch.tensor([[0] * 2 + [1] * 7 if side == "left" else [1] * 7 + [0] * 2])
    derived = logits(model, ids.tolist(), pixel_values=given, attention_mask=keep)
    stated = logits(model, ids.tolist(), pixel_values=given, attention_mask=keep, image_attention_mask=mask)
    assert torch.equal(derived[keep.bool()], stated[keep.bool()])


# ------------------------------------------------------------------------------------------------ step 0


def test_with_new_gates_it_is_the_language_model_bit_for_bit():
    text = af.recipe("llama", "tiny", depth=5)
    lm, seeing = text.build().eval(), around(text, TOWER, Latents(3, 1, 2, 6), every=2, heads=2, placeholder=3).build()
    initialise(lm, seed=1)
    initialise(seeing.eval(), seed=2)
    missing, unexpected = seeing.load_state_dict(lm.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("images.", "gated.")) for name in missing)
    assert len(seeing.gated) == 3
    ids = [[5, 3, 7, 8], [3, 9, 10, 11]]
    assert torch.equal(logits(seeing, ids, pixel_values=pixels(2, 1)), logits(lm, ids))
    state, plain = seeing.start(2), lm.start(2)
    for piece in ([[5, 3], [3, 9]], [[7], [10]]):
        more = {"pixel_values": pixels(2, 1)} if len(piece[0]) == 2 else {}
        assert torch.equal(logits(seeing, piece, state=state, **more), logits(lm, piece, state=plain))
    with torch.no_grad():
        seeing.gated[1].scale["cross"].weight.fill_(0.5)
    assert not torch.equal(logits(seeing, ids, pixel_values=pixels(2, 1)), logits(lm, ids))


@pytest.mark.parametrize("page", ["gpt", "qwen2", "gemma3", "mixtral", "jamba", "mamba"])
def test_any_decoder_can_get_pictures(page):
    text = af.recipe(page, "tiny")
    model = around(text, TOWER, Latents(3, 1, 2, 6), every=2, heads=2, placeholder=3).build().eval()
    initialise(model, seed=0)
    with torch.no_grad():
        for gated in model.gated:
            gated.scale["cross"].weight.fill_(0.7)
    ids = [[5, 3, 7, 8]]
    one, two = (logits(model, ids, pixel_values=pixels(1, 1, seed=s)) for s in (1, 2))
    assert torch.equal(one[:, 0], two[:, 0]) and not torch.equal(one[:, 1:], two[:, 1:])


def test_a_frozen_language_model_learns_to_name_what_it_sees():
    """Pictures of one colour, each with its own word, after 60 steps of the new parts alone."""
    text = af.recipe("llama", "tiny")
    model = around(text, TOWER, Latents(3, 1, 2, 6), every=1, heads=2, placeholder=3).build()
    initialise(model, seed=0, scheme="xavier")
    new = [p.requires_grad_(n.startswith(("images.", "gated."))) for n, p in model.named_parameters()]
    optimiser = torch.optim.Adam([p for p in new if p.requires_grad], lr=1e-2)
    colours = torch.randn(4, 1, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 8, 8)
    ids, words = torch.tensor([[7, 3]] * 4), torch.tensor([20, 21, 22, 23])
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(ids, pixel_values=colours).logits[:, 1], words).backward()
        optimiser.step()
    with torch.no_grad():
        said = [model(ids, pixel_values=seen).logits[:, 1].argmax(-1) for seen in (colours, colours.roll(1, 0))]
        blind = model(ids, pixel_values=colours, image_attention_mask=torch.zeros(4, 2, 1)).logits[:, 1]
    assert torch.equal(said[0], words) and torch.equal(said[1], words.roll(1))
    assert torch.equal(blind, blind[:1].expand(4, -1))


def test_another_skeleton_is_refused():
    with pytest.raises(ValueError, match="need a decoder, a CausalLM; got a Encoder"):
        around(af.recipe("bert", "tiny"), TOWER, None)


# ------------------------------------------------------------------------------------------------ decoding


def test_pictures_that_come_piece_by_piece_give_the_whole_texts_numbers():
    model, given = built(), pixels(2, 3)
    ids = torch.tensor([[5, HOLE, 6, 7, HOLE, 8, HOLE, 9], [HOLE, 5, 6, HOLE, 7, HOLE, 8, 9]])
    whole, state = logits(model, ids.tolist(), pixel_values=given), model.start(2)
    cuts = [(0, 3, 0, 1), (3, 4, None, None), (4, 7, 1, 3), (7, 8, None, None)]
    ids[1, 3], ids[1, 4] = 7, HOLE  # the second picture in the third piece
    whole = logits(model, ids.tolist(), pixel_values=given)
    for start, end, low, high in cuts:
        more = {} if low is None else {"pixel_values": given[:, low:high]}
        found = logits(model, ids[:, start:end].tolist(), state=state, **more)
        torch.testing.assert_close(found, whole[:, start:end])
    order = [1, 0, 1]
    state.reorder(torch.tensor(order))
    behind = torch.tensor([[4, HOLE]] * 3)
    again = torch.cat((ids[order], behind), 1).tolist()
    last = pixels(3, 1, seed=5)
    torch.testing.assert_close(
        logits(model, behind.tolist(), state=state, pixel_values=last),
        logits(model, again, pixel_values=torch.cat((given[order], last), 1))[:, -2:],
    )


def test_a_picture_is_forgotten_when_its_text_is_trimmed():
    model, given = built(), pixels(1, 3)
    state = model.start(1)
    logits(model, [[HOLE, 5, 6]], state=state, pixel_values=given[:, :1])
    logits(model, [[HOLE, 7]], state=state, pixel_values=given[:, 1:2])
    state.trim(3)
    found = logits(model, [[8, HOLE]], state=state, pixel_values=given[:, 2:])
    wanted = logits(model, [[HOLE, 5, 6, 8, HOLE]], pixel_values=given[:, [0, 2]])
    torch.testing.assert_close(found, wanted[:, -2:])
    state.trim(1)  # inside the first call: its picture stays
    torch.testing.assert_close(
        logits(model, [[9]], state=state), logits(model, [[HOLE, 9]], pixel_values=given[:, :1])[:, -1:]
    )


def processor() -> ImageProcessor:
    half = (0.5,) * 3
    return ImageProcessor("IdeficsImageProcessor", True, (8, 8), 3, image_mean=half, image_std=half)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (11, 13, 3), dtype=np.uint8)


def test_generation_with_shots_searches_batches_and_streams():
    model = built()
    model.processor = processor()
    prompts = [[HOLE, 5, 6, HOLE, 7], [8, HOLE], [9, 10]]
    images = [[picture(0), picture(1)], [picture(2)], []]
    together = generate(model, prompts, images=images, max_new_tokens=6)
    for row, some, text in zip(prompts, images, together, strict=True):
        assert generate(model, row, images=some, max_new_tokens=6) == text
        assert generate(model, row, images=some, max_new_tokens=6, cache=False) == text
        assert HOLE not in text  # never written: it would need a picture
    assert generate(model, prompts[0], images=[picture(3), picture(4)], max_new_tokens=6) != together[0]
    beams = generate(model, prompts, images=images, max_new_tokens=5, num_beams=3)
    for row, some, text in zip(prompts, images, beams, strict=True):
        assert generate(model, row, images=some, max_new_tokens=5, num_beams=3) == text
    assert beams == generate(model, prompts, images=images, max_new_tokens=5, num_beams=3, cache=False)
    again = [HOLE, 5, 6, 5, 6, HOLE, 5, 6, 5]
    wanted = generate(model, again, images=images[0], max_new_tokens=16)
    assert generate(model, again, images=images[0], max_new_tokens=16, speculate="lookup") == wanted


def test_a_stream_is_the_generated_text(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(120)} | {"<fake>": 120, "<image>": HOLE}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.add_special_tokens(["<fake>", "<image>"])
    core.save(str(tmp_path / "tokenizer.json"))
    model = built()
    model.tokenizer, model.processor = Tokenizer.load(tmp_path), processor()
    images = [picture(0), picture(1)]
    text = generate(model, "<image> w5 w6 <image> w7", images=images, max_new_tokens=6)
    assert text and "".join(stream(model, "<image> w5 w6 <image> w7", images=images, max_new_tokens=6)) == text


# ------------------------------------------------------------------------------------------------ bad input


def test_bad_input_is_named_with_its_row():
    model, given = built(), pixels(2, 2)
    ids = [[HOLE, 5, HOLE, 6], [HOLE, 5, 6, 7]]
    with pytest.raises(ValueError, match=r"row 1 has 1 placeholders for pictures \(id 121\) and 2 pictures"):
        logits(model, ids, pixel_values=given)
    with pytest.raises(ValueError, match=r"row 0 has 2 placeholders .* and 0 pictures"):
        logits(model, ids)
    with pytest.raises(ValueError, match=r"pixel_values must be \(batch, images, 3, height, width\), got \(2, 3, 8"):
        logits(model, ids, pixel_values=given[:, 0])
    with pytest.raises(ValueError, match=r"pixel_values of \(8, 7\) pixels are no whole number of patches of 4"):
        logits(model, ids, pixel_values=given[..., :7])
    with pytest.raises(ValueError, match="pictures for 1 rows, and input_ids has 2 rows"):
        logits(model, ids, pixel_values=given[:1])
    with pytest.raises(ValueError, match="image_mask: row 1 has a gap"):
        logits(model, ids, pixel_values=given, image_mask=torch.tensor([[1, 1], [0, 1]]))
    mask = torch.zeros(2, 4, 2, dtype=torch.long)
    with pytest.raises(
        ValueError, match=r"image_attention_mask must be \(batch, tokens, pictures so far\) = \(2, 4, 2\)"
    ):
        logits(model, ids, pixel_values=given, image_attention_mask=mask[:, :3])
    mask[1, 2] = 1
    with pytest.raises(ValueError, match="token 2 of row 1 sees 2 pictures"):
        logits(model, ids, pixel_values=given, image_attention_mask=mask)
    mask[1, 2] = 0
    mask[0, 1, 1] = 1
    with pytest.raises(ValueError, match="token 1 of row 0 sees picture 1, and the last one before it is number 0"):
        logits(model, ids, pixel_values=given, image_attention_mask=mask)
    with pytest.raises(ValueError, match="no part of this model reads 'pixel_values'"):
        af.build("llama", "tiny")(torch.tensor(ids), pixel_values=given)
    with pytest.raises(ValueError, match="llama sees no pictures inside a text"):
        generate(af.build("llama", "tiny"), [5, 6], images=[picture(0)])
    with pytest.raises(ValueError, match="the model has no processor"):
        generate(model, [HOLE], images=[picture(0)])
    model.processor = processor()
    with pytest.raises(ValueError, match="images must be pictures, or 2 lists of pictures, one for each prompt; got 1"):
        generate(model, [[HOLE], [5]], images=[[picture(0)]])
    with pytest.raises(ValueError, match=r"there are 1 \+ 1 images, and prompt 0 has 1, prompt 1 has 0 placeholders"):
        generate(model, [[HOLE], [5]], images=[[picture(0)], [picture(1)]], max_new_tokens=2)
    bare = built(extra=0, placeholder=None)
    with pytest.raises(ValueError, match="no token that stands for a picture: pass image_attention_mask"):
        logits(bare, [[5, 6]], pixel_values=given[:1])


def test_a_refused_call_leaves_the_state_alone():
    model, state = built(), None
    state = model.start(1)
    logits(model, [[HOLE, 5]], state=state, pixel_values=pixels(1, 1))
    with pytest.raises(ValueError, match="row 0"):
        logits(model, [[HOLE, 5]], state=state)
    assert state.length == 2
    torch.testing.assert_close(
        logits(model, [[6]], state=state), logits(model, [[HOLE, 5, 6]], pixel_values=pixels(1, 1))[:, -1:]
    )


def test_counts_are_not_checked_where_there_is_no_content():
    check_counts(torch.zeros(1, 3, dtype=torch.bool, device="meta"), 2, 5)
