"""Image processors: their numbers are the published ones, their files are read and written without loss, or refused."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anyformer.hub.processors import ImageProcessor, read_processor, trained, write_processor

CONFIGS = Path(__file__).parents[3] / "shared/data/configs"
VIT: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 17, "width": 23}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.2],
}  # fmt: skip
CLIP: dict[str, Any] = {
    **VIT, "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "size": {"shortest_edge": 20},
    "resample": 3, "do_center_crop": True, "crop_size": {"height": 19, "width": 18},
}  # fmt: skip
IDEFICS: dict[str, Any] = {**VIT, "image_processor_type": "IdeficsImageProcessor", "image_num_channels": 3}
DPT: dict[str, Any] = {
    **VIT, "image_processor_type": "DPTImageProcessor", "ensure_multiple_of": 4, "keep_aspect_ratio": False,
    "do_pad": False, "do_reduce_labels": False,
}  # fmt: skip
FILES: dict[str, dict[str, Any]] = {
    "idefics": IDEFICS, "dpt": DPT,
    "vit": VIT, "clip": CLIP, "clip, crop larger": {**CLIP, "crop_size": {"height": 25, "width": 32}},
    "clip, odd": {**CLIP, "size": {"shortest_edge": 7}, "crop_size": {"height": 8, "width": 5}},
    **{f"vit, filter {i}": {**VIT, "resample": i} for i in range(6)},
    "vit, cropped": {**VIT, "do_center_crop": True, "crop_size": {"height": 9, "width": 30}},
    "bytes": {**VIT, "do_convert_rgb": True, "do_rescale": False, "do_normalize": False},
    "scaled alone": {**VIT, "do_convert_rgb": True, "do_normalize": False, "rescale_factor": 1 / 127.5},
}  # fmt: skip


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def odd() -> dict[str, tuple]:
    """Name -> what we are given, and what the reference is given: the same picture in 8 bits, upright."""
    rgb, grey = noise(31, 45, 3), noise(40, 33)
    image = Image.fromarray(rgb)
    modes = {mode: image.convert(mode) for mode in ("1", "L", "LA", "P", "CMYK", "YCbCr", "HSV")}
    see_through = Image.fromarray(noise(30, 30, 4), "RGBA")
    palette = image.quantize(16)
    palette.info["transparency"] = 3
    exif = Image.Exif()
    exif[0x0112] = 6
    shapes = [(1, 1), (1, 300), (300, 2), (2, 3), (17, 23), (20, 20), (200, 151), (19, 18)]
    return {
        **{f"{h} x {w}": (Image.fromarray(noise(h, w, 3)),) * 2 for h, w in shapes},
        **{mode: (held, held) for mode, held in modes.items()},
        "RGBA": (see_through, see_through), "palette with a hole": (palette, palette),
        "16 bits": (saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), Image.fromarray(grey)),
        "turned": (saved(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif), image),
        "JPEG": (jpeg := saved(image, "JPEG"), Image.open(io.BytesIO(jpeg))),
        "floats": ((rgb / 255).astype(np.float32), image), "uint8": (rgb, image),
        "uint16": (rgb.astype(np.uint16) * 257, image), "channels first": (rgb.transpose(2, 0, 1), image),
        "grey floats": (grey / 255, Image.fromarray(grey)),
        "tensor": (torch.from_numpy(rgb).movedim(2, 0) / 255, image),
    }  # fmt: skip


ODD = odd()


def reference(said: dict, image: Image.Image, **changes) -> np.ndarray:
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, said["image_processor_type"] + "Pil")
    out = cls(**{**said, "do_convert_rgb": True, **changes})(image, return_tensors="np")
    return (out if isinstance(out, np.ndarray | list) else out["pixel_values"])[0]  # IDEFICS's gives pixels alone


def made(said: Any, folder: Path, name: str = "preprocessor_config.json") -> ImageProcessor:
    (folder / name).write_text(json.dumps(said))
    found = read_processor(folder)
    assert isinstance(found, ImageProcessor)
    return found


@pytest.mark.parametrize("name", FILES)
def test_numbers_are_the_published_ones(name, tmp_path):
    """To the bit after resizing, and after normalising to 1e-6, on all odd pictures."""
    assert len(ODD) >= 20
    said, processor = FILES[name], made(FILES[name], tmp_path)
    for what, (given, theirs) in ODD.items():
        bytes_ = reference(said, theirs, do_rescale=False, do_normalize=False)
        np.testing.assert_array_equal(processor.pixels(given), bytes_, err_msg=what)
        found = processor(given)["pixel_values"]
        assert found.dtype == torch.float32 and found.shape == (1, *bytes_.shape)
        np.testing.assert_allclose(found[0].numpy(), reference(said, theirs), rtol=0, atol=1e-6, err_msg=what)


@pytest.mark.parametrize("changes", [{}, {"do_pad": True, "size_divisor": 9}, {"ensure_multiple_of": 1}])
@pytest.mark.parametrize("size", [{"height": 40, "width": 30}, {"height": 9, "width": 64}])
def test_sides_in_multiples_and_padding_are_the_published_ones(size, changes, tmp_path):
    said = {**DPT, "keep_aspect_ratio": True, "size": size, **changes}
    processor = made(said, tmp_path)
    for shape in ((17, 23), (20, 20), (200, 151), (19, 18), (64, 30), (33, 100)):
        image = Image.fromarray(noise(*shape, 3))
        found = processor(image)["pixel_values"][0].numpy()
        np.testing.assert_allclose(found, reference(said, image), rtol=0, atol=1e-6, err_msg=str(shape))
    with pytest.raises(ValueError, match="nothing of it remains"):
        processor(Image.new("RGB", (900, 1)))


def test_several_pictures_are_a_batch(tmp_path):
    processor = made(VIT, tmp_path)
    given = [ours for ours, _ in ODD.values()]
    batch = processor(given)["pixel_values"]
    for i, one in enumerate(given):
        torch.testing.assert_close(batch[i : i + 1], processor(one)["pixel_values"], rtol=0, atol=0)
    four = noise(2, 5, 6, 3)
    assert torch.equal(processor(four)["pixel_values"], processor([four[0], four[1]])["pixel_values"])


def test_pictures_that_stay_different_are_no_batch(tmp_path):
    processor = made({**CLIP, "do_center_crop": False}, tmp_path)
    with pytest.raises(ValueError, match=r"different shapes: \(3, 20, 20\), \(3, 20, 6000\).*crop_size"):
        processor([ODD["1 x 300"][0], ODD["20 x 20"][0]])
    with pytest.raises(ValueError, match="the list is empty"):
        processor([])
    with pytest.raises(ValueError, match=r"becomes one of .* at most"):
        processor(Image.new("L", (100000, 1)).resize((1000000, 1)))


def test_one_channel(tmp_path):
    """A file with one mean is a model's that reads grey; every picture becomes grey."""
    processor = made({**VIT, "image_mean": [0.5], "image_std": [0.5]}, tmp_path)
    grey = noise(20, 30)
    wanted = reference({**VIT, "image_mean": [0.5], "image_std": [0.5]}, Image.fromarray(grey), do_convert_rgb=None)
    np.testing.assert_array_equal(processor(grey)["pixel_values"][0].numpy(), wanted)
    assert processor(ODD["RGBA"][0])["pixel_values"].shape == (1, 1, 17, 23)


# ------------------------------------------------------------------------------------------------ files


OLD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a number is square in ViT's": ({**VIT, "size": 12}, {"size": (12, 12)}),
    "a number is the shorter edge in CLIP's": (
        {**CLIP, "size": 12, "crop_size": 10}, {"size": 12, "crop_size": (10, 10)},
    ),
    "a list is height and width": ({**VIT, "size": [12, 14]}, {"size": (12, 14)}),
    "default_to_square": ({**CLIP, "size": 12, "default_to_square": True}, {"size": (12, 12)}),
    "extractor": (
        {"feature_extractor_type": "ViTFeatureExtractor", **{k: VIT[k] for k in ("size", "image_mean", "image_std")}},
        {"kind": "ViTImageProcessor"},
    ),
    "idefics, the older name": (
        {"image_processor_type": "IdeficsImageProcessor", "image_size": 16, "image_num_channels": 3,
         "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]},
        {"size": (16, 16), "resample": 3, "convert_rgb": True, "rescale_factor": 1 / 255},
    ),
    "idefics, both names": ({**IDEFICS, "size": {"height": 9, "width": 9}, "image_size": 9}, {"size": (9, 9)}),
    "quick": ({**CLIP, "image_processor_type": "CLIPImageProcessorFast"}, {"kind": "CLIPImageProcessor"}),
    "null": (
        {**VIT, "do_convert_rgb": None, "do_pad": None, "pad_size": None, "crop_size": None, "device": None,
         "input_data_format": None, "return_tensors": None, "disable_grouping": None, "data_format": "channels_first"},
        {"convert_rgb": False},
    ),
    "absent": (
        {k: VIT[k] for k in ("image_processor_type", "size", "image_mean", "image_std")},
        {"resample": 2, "rescale_factor": 1 / 255, "crop_size": None},
    ),
    "absent in CLIP's": (
        {k: CLIP[k] for k in ("image_processor_type", "size", "crop_size", "image_mean", "image_std")},
        {"resample": 3, "convert_rgb": True, "crop_size": (19, 18)},
    ),
    "switched off": (
        {"image_processor_type": "ViTImageProcessor", "do_resize": False, "do_rescale": False, "do_normalize": False},
        {"size": None, "rescale_factor": None, "image_mean": None},
    ),
    "not cut": ({**CLIP, "do_center_crop": False}, {"crop_size": None}),
    "one number for all": (
        {**VIT, "image_mean": 0.5, "image_std": 1}, {"image_mean": (0.5,) * 3, "image_std": (1.0,) * 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*OLD, *FILES])
@pytest.mark.parametrize("together", [False, True])
def test_files_come_back_as_they_were(name, together, tmp_path):
    said, meant = OLD[name] if name in OLD else (FILES[name], {})
    file = "processor_config.json" if together else "preprocessor_config.json"
    whole = {"image_processor": said, "processor_class": "CLIPProcessor"} if together else said
    processor = made(whole, tmp_path, file)
    assert {k: getattr(processor, k) for k in meant} == meant
    assert {line.key for line in processor.origin.lines} == set(said) | ({"processor_class"} if together else set())
    (tmp_path / "out").mkdir()
    write_processor(tmp_path / "out", processor)
    assert [f.name for f in (tmp_path / "out").iterdir()] == [file]
    assert json.loads((tmp_path / "out" / file).read_text()) == whole
    plain = type(processor)(**{f: getattr(processor, f) for f in processor.__dataclass_fields__ if f != "origin"})
    write_processor(tmp_path / "out", plain)  # in our words, it means the same
    assert read_processor(tmp_path / "out") == processor == plain


def test_one_that_was_made_opens_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    for channels in (1, 3):
        processor = trained("ViTImageProcessor", 12, 10, channels)
        write_processor(tmp_path, processor)
        theirs = transformers.ViTImageProcessorPil.from_pretrained(tmp_path)
        given = noise(20, 30, 3) if channels == 3 else noise(20, 30)
        wanted = theirs(Image.fromarray(given), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(processor(given)["pixel_values"].numpy(), wanted, rtol=0, atol=1e-6)
        assert read_processor(tmp_path) == processor


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"crop_pct": 0.9}, "crop_pct=0.9"),
    "two sizes": (
        {**IDEFICS, "image_size": 9}, r"'size' and 'image_size' are names of one value.*\(17, 23\) and \(9, 9\)",
    ),
    "grey in IDEFICS's": ({**IDEFICS, "image_num_channels": 1}, "'image_num_channels' is 1; here it can be 3"),
    "IDEFICS's key in ViT's": ({"image_size": 9}, "image_size=9"),
    "unknown type": ({"image_processor_type": "BeitImageProcessor"}, "BeitImageProcessor.*known are ViT"),
    "no type": ({"image_processor_type": None}, "lacks 'image_processor_type'"),
    "code": ({"auto_map": {"AutoImageProcessor": "x.Y"}}, "names code in the folder"),
    "no mean": ({"image_mean": None}, "lacks 'image_mean', which has no default"),
    "no std": ({"image_std": None}, "lacks 'image_std'"),
    "mean of two": ({"image_mean": [0.5, 0.5]}, "'image_mean' has 2 numbers"),
    "mean and std": ({"image_mean": [0.5]}, "have 1 and 3 numbers"),
    "mean and rgb": ({"image_mean": [0.5], "image_std": [0.5], "do_convert_rgb": True}, "makes three channels"),
    "std of 0": ({"image_std": [0.5, 0.0, 0.5]}, "'image_std' is 0.0; expected a number above 0"),
    "mean in words": ({"image_mean": ["a", 0, 0]}, "'image_mean' is a"),
    "no number": ({"image_mean": [float("nan"), 0, 0]}, "'image_mean' is nan"),
    "endless": ({"rescale_factor": float("inf")}, "'rescale_factor' is inf"),
    "huge": ({"size": 10**30}, "'size': expected a whole number, got a whole number beyond"),
    "negative": ({"size": -3}, "'size' is -3; expected a whole number from 1 to"),
    "size of nothing": ({"size": None}, "'size' is None"),
    "size in words": ({"size": "big"}, "'size' is big"),
    "size of three": ({"size": [1, 2, 3]}, "'size' is .1, 2, 3."),
    "half a size": ({"size": {"height": 3}}, "'size' is .'height': 3."),
    "longest edge": ({"size": {"longest_edge": 3}}, "'size' is"),
    "truth as a size": ({"size": True}, "'size' is True"),
    "DPT's key in ViT's": ({"keep_aspect_ratio": True}, "keep_aspect_ratio=True"),
    "a multiple of nothing": ({**DPT, "ensure_multiple_of": 0}, "multiple is 0; expected at least 1"),
    "a divisor of nothing": ({**DPT, "do_pad": True, "size_divisor": 0}, "'size_divisor' is 0; expected"),
    "filter": ({"resample": 9}, "'resample' is 9"),
    "filter in words": ({"resample": "bicubic"}, "'resample' is bicubic"),
    "maybe": ({"do_resize": "yes"}, "'do_resize' is yes; expected true or false"),
    "padding": ({"do_pad": True}, "'do_pad' is True"),
    "channels last": ({"data_format": "channels_last"}, "'data_format' is channels_last"),
    "crop of a dictionary": ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "'crop_size' is"),
    "no crop": ({"do_center_crop": True}, "'crop_size' is None"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_file_and_key(name, tmp_path):
    changes, told = REFUSED[name]
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: .*{told}"):
        made({**VIT, **changes}, tmp_path)


@pytest.mark.parametrize("value", [None, [], "x", 3, -1, 1e308, float("nan"), {}, [[]], {"a": {}}, True, 10**400])
@pytest.mark.parametrize("key", sorted({*CLIP, "feature_extractor_type", "do_pad", "default_to_square", "data_format"}))
def test_any_value_is_read_or_refused(key, value, tmp_path):
    """One key of the file is something else: a processor that works, or a ValueError that names the file."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**CLIP, key: value}))
    try:
        found = read_processor(tmp_path)
    except ValueError as error:
        assert "preprocessor_config.json" in str(error) and len(str(error)) < 1000
    else:
        assert found is not None and found(noise(9, 9, 3))["pixel_values"].isfinite().all()


def test_keys_that_a_caller_knows_to_mean_nothing(tmp_path):
    made_with = {**VIT, "crop_pct": 0.9}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(made_with))
    found = read_processor(tmp_path, ignore=("crop_pct",))
    assert found is not None
    assert [(line.key, line.detail) for line in found.origin.lines if line.status == "ignored"] == [
        ("crop_pct", "as asked")
    ]


def test_two_files(tmp_path):
    made(CLIP, tmp_path)
    assert made({"image_processor": CLIP}, tmp_path, "processor_config.json").size == 20
    with pytest.raises(ValueError, match="remove one of them"):
        made({"image_processor": {**CLIP, "size": 21}}, tmp_path, "processor_config.json")
    for bad, told in (([], "expected a dictionary"), ({"image_processor": 3}, "must be a dictionary"),
                      ({"image_token": "<image>"}, "unknown keys: image_token")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"processor_config\.json: .*{re.escape(told)}"):
            made(bad, tmp_path, "processor_config.json")
    assert read_processor(tmp_path / "nowhere") is None


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the published config files lie beside the project's own checkout")
def test_published_files_are_read(tmp_path):
    read = 0
    for path in sorted(CONFIGS.glob("*/*preprocessor_config.json")):
        said = json.loads(path.read_text())
        kind = said.get("image_processor_type") or said.get("feature_extractor_type") or path.parent.name
        if str(kind).lower().startswith(("vit", "clip")):
            (tmp_path / "preprocessor_config.json").write_bytes(path.read_bytes())
            found = read_processor(tmp_path, "ViTImageProcessor")
            assert found is not None and found(noise(9, 9, 3))["pixel_values"].shape[1] == 3
            read += 1
    assert read >= 6


@pytest.mark.parametrize(
    "kind", ["ViTImageProcessor", "CLIPImageProcessor", "DPTImageProcessor", "IdeficsImageProcessor"]
)
def test_one_for_training_comes_back_from_its_file(kind, tmp_path):
    processor = trained(kind, 12, 10, 3)
    write_processor(tmp_path, processor)
    assert read_processor(tmp_path) == processor and processor(noise(20, 30, 3))["pixel_values"].shape == (1, 3, 12, 10)
