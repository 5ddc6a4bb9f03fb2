"""Omni: media of any size in any order are those of Qwen2.5-Omni, also with a cache cut inside them; its files; and
what is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.contract import oracle, tracing
from anyformer.contract.probe import Batch, close
from anyformer.contract.subjects import Subject
from anyformer.generate import generate
from anyformer.hub.load import outline
from anyformer.hub.processors import CubeProcessor, SoundProcessor, read_processor, write_processor
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.media.clip import clip
from anyformer.parts.attention import groups

CONFIGS = Path(__file__).parents[3] / "shared/data/configs/qwen2_5_vl"
IMAGE, VIDEO, SOUND, VIEW, NOISE = 121, 122, 123, (124, 125), (126, 127)
LONG: dict[str, Any] = {"text.context": 128, "view.window": 8}  # windows of 2 x 2 cells
HALF = (0.5, 0.5, 0.5)


def subject() -> Subject:
    page, config = af.page("omni"), af.page("omni").at("tiny", **LONG)
    return Subject("omni/media", page.recipe(config), "omni", config)


def media() -> dict[str, torch.Tensor]:
    """Pictures of 2 x 6, 10 x 4 and 4 x 4 patches, videos of three and two frames, sounds of 17, 4 and 23 frames."""
    draw = torch.Generator().manual_seed(0)
    grids = {"grid_thw": [[1, 2, 6], [1, 10, 4], [1, 4, 4]], "video_grid_thw": [[3, 4, 2], [2, 6, 4]]}
    made = {name: torch.tensor(grid) for name, grid in grids.items()}
    for name, grid in (("pixel_values", "grid_thw"), ("video_pixel_values", "video_grid_thw")):
        made[name] = torch.randn(int(made[grid].prod(1).sum()), 24, generator=draw)
    lengths = torch.tensor([17, 4, 23])
    return made | {
        "video_seconds": torch.tensor([0.41, 2.0]),
        "input_features": torch.randn(3, 6, 23, generator=draw),
        "feature_attention_mask": (torch.arange(23) < lengths[:, None]).long(),
    }


def text(*pieces: Any) -> list[int]:
    """Tokens, and media as (token, positions)."""
    row: list[int] = []
    for piece in pieces:
        around = NOISE if isinstance(piece, tuple) and piece[0] == SOUND else VIEW
        row += [piece] if isinstance(piece, int) else [around[0], *[piece[0]] * piece[1], around[1]]
    return row


ROWS = [
    text(1, (SOUND, 4), 2, (IMAGE, 3), 3, (VIDEO, 6), (IMAGE, 10), 4, 5),
    text((VIDEO, 12), 7, (SOUND, 1), (IMAGE, 4), (SOUND, 6)),
    text(8, 9, 10),
]


def padded(side: str) -> dict[str, torch.Tensor]:
    width = max(map(len, ROWS))
    fill = [[0] * (width - len(row)) for row in ROWS]
    made = [f + r if side == "left" else r + f for f, r in zip(fill, ROWS, strict=True)]
    keep = [[0] * len(f) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(f)
            for f, r in zip(fill, ROWS, strict=True)]  # fmt: skip
    return {"input_ids": torch.tensor(made), "attention_mask": torch.tensor(keep), **media()}


@pytest.fixture(scope="module")
def side() -> Any:
    pytest.importorskip("transformers", reason="it is the oracle")
    drawn = subject()
    return oracle.meet(drawn, af.page("omni").module.HUBS[0])


@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_media_of_any_size_in_any_order_are_those_of_transformers(side, padding):
    """Several of each in a row, none in another, windows that the grids do not fill, chunks cut, seconds that are no
    whole places: logits and hidden states."""
    given = padded(padding)
    keep = given["attention_mask"].bool()
    batch = Batch(given, keep=keep, inserts=side.ours.inserts(given), padding=frozenset({"attention_mask"}))
    theirs, ours = side.run(batch), tracing.trace(side.ours, batch)
    for name, own in tracing.aligned(ours, theirs, batch).items():
        close(ours[own][keep], theirs[name][keep], name)


@torch.no_grad()
def test_rows_alone_a_cache_cut_inside_media_and_another_order_of_rows_give_the_same(side):
    model, given = side.ours, padded("left")
    batch = Batch(given, keep=given["attention_mask"].bool(), inserts=model.inserts(given),
                  counted=frozenset({"input_ids"}), padding=frozenset({"attention_mask"}))  # fmt: skip
    whole = model(**given).logits
    for i in range(3):
        alone = batch.row(i)
        close(model(**alone.inputs).logits[0], batch.real("logits", whole, i), f"row {i} alone")
    turned = batch.rows([2, 1, 0])
    close(model(**turned.inputs).logits[:, -1], whole[[2, 1, 0], -1], "the rows the other way round")
    ids, mask = given["input_ids"], given["attention_mask"]
    for cuts in ((0, 4, 15, 27, 33, ids.shape[1]), (0, 31, 32, ids.shape[1])):
        state, pieces = model.start(3), []
        for first, end in itertools.pairwise(cuts):
            begun = [batch.begun(name, first, end) for name in batch.inserts]
            step = {name: value for one in begun for name, value in one.items()}
            pieces.append(model(input_ids=ids[:, first:end], attention_mask=mask[:, :end], state=state, **step).logits)
        close(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], f"cut at {cuts}", atol=1e-4)
    state.trim(20)
    step = {name: value for one in batch.inserts for name, value in batch.begun(one, 20, 99).items()}
    close(
        model(input_ids=ids[:, 20:], attention_mask=mask, state=state, **step).logits,
        whole[:, 20:],
        "trimmed",
        atol=1e-4,
    )


@torch.no_grad()
def test_one_mask_over_all_pairs_gives_the_same_as_rows_of_groups(side, monkeypatch):
    given = padded("left")
    rows = side.ours(**given).logits
    monkeypatch.setattr(groups, "readable", lambda tensor: False)
    close(side.ours(**given).logits, rows, "one mask")


def model(**changes: Any) -> Any:
    made: Any = af.build("omni", "tiny", seed=1, overrides={"text.vocab": 270, "text.context": 256, **changes, **{
        "image_token": 257, "video_token": 258, "sound_token": 259, "view_around": (260, 261),
        "sound_around": (262, 263)}}).eval()  # fmt: skip
    made.tokenizer = Tokenizer.bytes_level()
    for token, name in ((257, "<image>"), (258, "<video>"), (259, "<sound>")):
        made.tokenizer = made.tokenizer.with_special(token, name)
    made.processor = CubeProcessor(
        image_mean=HALF, image_std=HALF, patch=2, least=16, most=64, rate=4.0, ears=SoundProcessor(mels=6, window=2)
    )
    return made


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_prompts_with_media_continue_as_their_inputs_do_and_alone_as_together():
    made = model()
    sounds = [(np.sin(np.arange(3000) / 9).astype(np.float32), 16000), (np.ones(700, np.float32) * 0.1, 8000)]
    videos = [([picture(8, 8, i) for i in range(5)], 4.0)]
    prompts = ["a<image>b<sound>", "<sound>c<video><image>"]
    pictures = [picture(9, 4), picture(5, 30)]
    both = generate(made, prompts, images=pictures, sounds=sounds, videos=videos, max_new_tokens=5)
    assert both[1] == generate(
        made, prompts[1], images=pictures[1:], sounds=sounds[1:], videos=videos, max_new_tokens=5
    )
    assert both == generate(made, prompts, images=pictures, sounds=sounds, videos=videos, max_new_tokens=5, cache=False)
    last: dict[str, Any] = {"images": pictures[1:], "sounds": sounds[1:], "videos": videos}
    wanted = generate(made, f"abab{prompts[1]}abab", max_new_tokens=16, **last)
    assert generate(made, f"abab{prompts[1]}abab", max_new_tokens=16, speculate="lookup", **last) == wanted
    beams = generate(made, prompts[1], max_new_tokens=5, num_beams=3, **last)
    assert beams == generate(made, prompts[1], max_new_tokens=5, num_beams=3, cache=False, **last)
    assert both[0] == generate(made, prompts[0], images=pictures[:1], sounds=sounds[:1], max_new_tokens=5)
    beams = generate(made, prompts, images=pictures, sounds=sounds, videos=videos, max_new_tokens=5, num_beams=2)
    assert len(beams) == 2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a video without seconds": ({"video_seconds": None}, "video_pixel_values came without video_seconds"),
    "seconds for one of two": ({"video_seconds": torch.ones(1)}, "must be 2 numbers of seconds"),
    "seconds that stand still": ({"video_seconds": torch.tensor([0.0, 1.0])}, r"must be above 0 and finite; got \[0.0"),
    "fewer patches than the grid": ({"pixel_values": torch.zeros(60, 24)}, "of 68 patches, and pixel_values has 60"),
    "an odd grid": ({"grid_thw": torch.tensor([[1, 3, 4], [1, 10, 4], [1, 4, 4]])}, "picture 0 has 1 x 3 x 4 patches"),
    "pixels in place of patches": ({"pixel_values": torch.zeros(3, 3, 8, 8)}, r"must be \(patches, 24\)"),
    "a video among pictures": (
        {"grid_thw": torch.tensor([[1, 2, 6], [2, 10, 2], [1, 4, 4]])}, "picture 1 has 2 frames; a video is another"
    ),
    "a grid of fractions": ({"grid_thw": torch.ones(3, 3)}, "whole numbers"),
    "a sound with another one's mels": ({"input_features": torch.zeros(3, 7, 23)}, r"must be \(sounds, 6, frames\)"),
    "a sound without its mask": ({"feature_attention_mask": None}, "feature_attention_mask is missing"),
    "a sound with a hole": (
        {"feature_attention_mask": torch.tensor([[1, 0] + [1] * 21] * 3)}, "sound 0 has frames behind padding"
    ),
    "a sound of two frames": (
        {"feature_attention_mask": (torch.arange(23) < torch.tensor([[17], [2], [23]])).long()},
        r"row 1 has 7 placeholders of sound .* make 0 \+ 6 positions",
    ),
    "the positions of another picture": (
        {"grid_thw": torch.tensor([[1, 2, 4], [1, 10, 4], [1, 4, 5]])}, "picture 2|placeholders"
    ),
    "a picture too many": (
        {"grid_thw": torch.tensor([[1, 2, 6], [1, 10, 4], [1, 4, 2], [1, 4, 2]])}, "placeholders of image|left over"
    ),
    "no video, and placeholders of one": (
        dict.fromkeys(("video_pixel_values", "video_grid_thw", "video_seconds")), "placeholders of video"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name):
    changes, message = REFUSED[name]
    given = {k: v for k, v in (padded("left") | changes).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        af.build("omni", "tiny", seed=0, overrides=LONG)(**given)


def test_media_that_a_model_does_not_read_are_refused():
    made, words = model(), af.build("llama", "tiny", seed=0)
    tone = (np.zeros(800, np.float32), 16000)
    with pytest.raises(ValueError, match=r"llama sees no pictures inside a text: it reads .* use LLaVA or Omni"):
        generate(words, [[1, 2]], images=[picture(4, 4)])
    with pytest.raises(ValueError, match="llava hears no sounds"):
        generate(af.build("llava", "tiny", seed=0), [[1, 2]], sounds=[tone])
    with pytest.raises(ValueError, match="there are 2 sounds, and prompt 0 has 1 placeholders"):
        generate(made, "a<sound>", sounds=[tone, tone])
    with pytest.raises(ValueError, match=r"The\s+rate must be\s+known"):
        generate(made, "a<sound>", sounds=[np.zeros(800, np.float32)])
    with pytest.raises(ValueError, match="Without seconds it has no motion"):
        generate(made, "a<video>", videos=[picture(4, 4)])
    with pytest.raises(ValueError, match=r"has 3\.0 seconds; at most 2"):
        generate(made, "a<sound>", sounds=[(np.zeros(48000, np.float32), 16000)])
    with pytest.raises(ValueError, match=r"Spliced: the ids around token 121 are \(124, 300\)"):
        af.build("omni", "tiny", overrides={"view_around": (124, 300)})


FLAT: dict[str, Any] = {  # the keys of Qwen2.5-Omni's preprocessor_config.json
    "chunk_length": 300, "dither": 0.0, "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128,
    "hop_length": 160, "image_mean": [0.48, 0.46, 0.41], "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.27, 0.26, 0.28], "max_pixels": 12845056, "merge_size": 2, "min_pixels": 3136, "n_fft": 400,
    "n_samples": 4800000, "nb_max_frames": 30000, "padding_side": "right", "padding_value": 0.0, "patch_size": 14,
    "processor_class": "Qwen2_5OmniProcessor", "return_attention_mask": True, "sampling_rate": 16000,
    "temporal_patch_size": 2,
}  # fmt: skip
HEARD = ("chunk_length", "dither", "feature_extractor_type", "feature_size", "hop_length", "n_fft", "n_samples",
         "nb_max_frames", "padding_side", "padding_value", "return_attention_mask", "sampling_rate")  # fmt: skip
TAKES = ("input_ids", "pixel_values", "grid_thw", "input_features")


@pytest.mark.parametrize("form", ["one file", "two parts"])
def test_a_processor_is_read_with_every_key_and_written_back(form, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    parts = {"image_processor": {k: v for k, v in FLAT.items() if k not in HEARD},
             "feature_extractor": {k: FLAT[k] for k in HEARD}}  # fmt: skip
    name, content = ("preprocessor_config.json", FLAT) if form == "one file" else ("processor_config.json", parts)
    (one / name).write_text(json.dumps(content))
    read: Any = read_processor(one, None, (), TAKES)
    assert (read.patch, read.least, read.most, read.ears.mels, read.ears.window) == (14, 3136, 12845056, 128, 300)
    assert {line.key for line in read.origin.lines} == set(FLAT)
    write_processor(two, read)
    assert json.loads((two / name).read_text()) == content
    (one / name).write_text(json.dumps({**content, "shine": 3}))
    with pytest.raises(ValueError, match=r"unknown.*shine"):
        read_processor(one, None, (), TAKES)


def test_patches_and_features_are_those_of_the_published_processors():
    transformers = pytest.importorskip("transformers")
    pil = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    ears = SoundProcessor(mels=80, window=3)
    ours = CubeProcessor(image_mean=HALF, image_std=HALF, least=3136, most=50_000, ears=ears)
    theirs = pil.Qwen2VLImageProcessorPil(image_mean=HALF, image_std=HALF, min_pixels=3136, max_pixels=50_000)
    sizes = ((1, 1), (7, 90), (56, 56), (61, 77), (300, 41), (99, 1000), (28, 14), (400, 400))
    pictures = [Image.fromarray(picture(*size)) for size in sizes]
    found, wanted = ours(pictures), theirs(pictures, return_tensors="pt")
    assert torch.equal(found["grid_thw"], wanted["image_grid_thw"])
    torch.testing.assert_close(found["pixel_values"], wanted["pixel_values"], rtol=0, atol=1e-6)
    tones = [np.random.default_rng(n).standard_normal(n).astype(np.float32) * 0.1 for n in (16000, 4321, 7)]
    heard = ours.sounds([(tone, 16000) for tone in tones])
    published = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=3)(
        tones, sampling_rate=16000, return_attention_mask=True, padding="max_length", return_tensors="pt"
    )
    lengths = published["attention_mask"].sum(1)
    assert torch.equal(heard["feature_attention_mask"].sum(1), lengths)
    for i, count in enumerate(lengths.tolist()):
        torch.testing.assert_close(heard["input_features"][i, :, :count], published["input_features"][i, :, :count])
    other = ours.sounds([(tones[0][::2], 8000)])  # another rate is resampled
    assert other["feature_attention_mask"].sum() == lengths[0]
    with pytest.raises(ValueError, match="too thin: one side is more than 200 times"):
        ours(pictures[0].resize((201, 1)))


def test_a_clip_keeps_its_seconds(tmp_path):
    frames = [Image.fromarray(picture(6, 6, i)) for i in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[100, 300, 100, 500])
    read = clip(tmp_path / "a.gif")
    assert [round(t, 3) for t in read.seconds] == [0.0, 0.1, 0.4, 0.5] and round(read.end, 3) == 1.0
    shown = [read.frames.index(frame) for frame in read.at(10)]
    assert shown == [0, 1, 1, 1, 2, 3, 3, 3, 3, 3]
    processor = model().processor
    made = processor.videos([read, (frames, [0.0, 0.5, 0.75, 1.5])])
    assert made["grid_thw"][:, 0].tolist() == [2, 4] and made["seconds"].tolist() == [0.5, 0.5]
    frames[0].save(tmp_path / "one.png")
    for source, message in (
        (tmp_path / "one.png", "single picture, not a video"),
        (tmp_path / "none.mp4", "there is no file"),
        ((frames, 0), "the rate is 0"),
        ((frames, [0.0, 1.0, 1.0, 2.0]), "do not go up: 0, 1, 1, 2"),
        ((frames, [0.0, 1.0]), "4 frames and 2 seconds"),
        (([], 5), "has 0 frames"),
    ):
        with pytest.raises(ValueError, match=message):
            clip(source)


def test_a_folder_holds_model_and_processor_and_gives_the_same_text(tmp_path):
    made = model()
    assert made.save(tmp_path) == "qwen2_5_omni_thinker"
    again: Any = af.load(tmp_path)
    assert again.processor == made.processor and again.config == made.config
    options: dict[str, Any] = {"images": [picture(8, 8)], "max_new_tokens": 4}
    assert generate(again, [[1, 260, 257, 261]], **options) == generate(made, [[1, 260, 257, 261]], **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config.out_hidden_size": 7}, r"vision_config\.out_hidden_size' is 7, and the text is 24 wide"),
        ({"audio_config.output_dim": 7}, r"audio_config\.output_dim' is 7"),
        ({"audio_config.max_source_positions": 2}, "below the 3 places of a chunk"),
        ({"text_config.use_sliding_window": True, "text_config.sliding_window": 4, "text_config.layer_types": None,
          "text_config.max_window_layers": 0}, "full attention only"),
        ({"text_config.rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "this page does not"),
        ({"vision_config.fullatt_block_indexes": 3}, "expected numbers of layers"),
        ({"vision_start_token_id": -1}, "expected ids of tokens"),
        ({"vision_config.rope_parameters": {"rope_type": "axial", "rope_theta": 5.0}}, "supports only"),
    ],
)  # fmt: skip
def test_what_a_config_says_and_the_page_cannot_do_is_refused(change, message, tmp_path):
    af.build("omni", "tiny").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for path, value in change.items():
        above, _, name = path.rpartition(".")
        (config[above] if above else config)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        outline(tmp_path)


@pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"there are no published files in {CONFIGS}")
def test_qwen2_5_vl_as_published_is_this_page_without_ears(tmp_path):
    """Its older form has the keys of the text among the others."""
    model = outline(CONFIGS / "qwen2.5_vl_7b.config.json")
    assert model.config.sound is None and model.config.rate == 2 and model.config.view == af.page("omni").at("7b").view
    assert sum(p.numel() for p in model.parameters()) == 8_292_166_656  # as published
    assert {line.key.partition(".")[0] for line in model.ledger.config} >= {
        "rope_scaling",
        "vision_config",
        "vocab_size",
    }
    (steps,) = CONFIGS.glob("*preprocessor_config.json")
    (tmp_path / "preprocessor_config.json").write_text(steps.read_text())
    read: Any = read_processor(tmp_path, None, (), ("input_ids", "pixel_values"))
    assert (read.patch, read.merge, read.most, read.ears) == (14, 2, 12845056, None)
