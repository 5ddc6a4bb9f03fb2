"""Pictures are read by their meaning: whatever coding holds one, the same picture comes out, or it is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from anyformer.data import pictures
from anyformer.media.picture import coloured, picture

GREY = np.random.default_rng(0).integers(0, 256, (6, 9), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY[0, :2] = 0, 255
RGB[0, 0], RGB[0, 1] = 0, 255


def file(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    """RGB as a camera stores it that was held another way."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the turn that undoes it, of PIL.Image.Transpose
    image = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file(image if orientation == 1 else image.transpose(Image.Transpose(back[orientation])), exif=exif)


COLOURS = {  # each is the picture RGB
    "uint8": RGB, "channels first": RGB.transpose(2, 0, 1), "lists": RGB.tolist(), "int64": RGB.astype(np.int64),
    "float32 of 0 to 1": (RGB / 255).astype(np.float32), "whole floats": RGB.astype(np.float32),
    "float16 of 0 to 1, first": (RGB.transpose(2, 0, 1) / 255).astype(np.float16),
    "uint16": RGB.astype(np.uint16) * 257, "tensor": torch.from_numpy(RGB.transpose(2, 0, 1).copy()),
    "tensor of floats": torch.from_numpy(RGB.transpose(2, 0, 1).copy()) / 255,
    "PNG": file(Image.fromarray(RGB)), "PNG in a dictionary": {"bytes": file(Image.fromarray(RGB)), "path": ""},
    "image": Image.fromarray(RGB), "opaque": Image.fromarray(RGB).convert("RGBA"),
    **{f"EXIF orientation {i}": turned(i) for i in range(1, 9)},
    "a turned image": Image.open(io.BytesIO(turned(6))),
}  # fmt: skip
GREYS = {  # each is the picture GREY
    "uint8": GREY, "one channel last": GREY[..., None], "one channel first": GREY[None], "lists": GREY.tolist(),
    "float64 of 0 to 1": GREY / 255, "uint16": GREY.astype(np.uint16) * 257, "image": Image.fromarray(GREY),
    "16-bit PNG": file(Image.fromarray(GREY.astype(np.uint16) * 257)),
    "16-bit TIFF": file(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
    "16-bit TIFF, big end first": file(Image.fromarray(GREY.astype(">u2") * 257), "TIFF"),
    "float TIFF of 0 to 1": file(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
    "float TIFF of whole numbers": file(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    "32-bit TIFF of bytes": file(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
    "16-bit image": Image.fromarray(GREY.astype(np.uint16) * 257),
    "float image": Image.fromarray((GREY / 255).astype(np.float32)),
}  # fmt: skip
BLACK_AND_WHITE = {"bool": GREY > 127, "1 bit": Image.fromarray(GREY > 127), "floats": (GREY > 127) * 1.0}
SAME = {
    f"{what}: {name}": (given, wanted)
    for what, held, wanted in (
        ("colours", COLOURS, RGB),
        ("grey", GREYS, np.repeat(GREY[..., None], 3, -1)),
        ("black and white", BLACK_AND_WHITE, np.repeat(((GREY > 127) * np.uint8(255))[..., None], 3, -1)),
    )
    for name, given in held.items()
}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", SAME)
def test_every_coding_is_the_same_picture(name, stored):
    given, wanted = SAME[name]
    found = picture(pictures.content(given) if stored else given)
    np.testing.assert_array_equal(np.asarray(coloured(found, 3)), wanted)


REFUSED = {
    "floats of 0 to 255": (RGB + 0.5, "goes from .* so its white is unknown"),
    "floats around 0": (RGB / 127.5 - 1, "goes from -1 to 1"),
    "not a number": (np.full((4, 4), np.nan), "nan"),
    "endless": (np.full((4, 4), np.inf), "inf"),
    "int32 of 16 bits": (RGB.astype(np.int32) * 257, "goes from 0 to 65535"),
    "negative": (RGB.astype(np.int16) - 1, "goes from -1"),
    "text": (np.array([["a"]]), "an array of numbers"),
    "nothing": (np.zeros((0, 4), np.uint8), "an array of numbers"),
    "two channels": (RGB[..., :2], "C one of 1, 3, 4"),
    "five axes": (RGB[None, None], "expected .height, width."),
    "either way": (np.zeros((3, 5, 3), np.uint8), "may be .height, width, C. or .C, height, width."),
    "float TIFF around 0": (
        file(Image.fromarray((GREY / 255 - 0.5).astype(np.float32)), "TIFF"),
        "its white is unknown",
    ),
    "32-bit TIFF": (file(Image.fromarray(GREY.astype(np.int32) * 70000), "TIFF"), "its white is unknown"),
    "no picture": (b"GIF89a?", "cannot be read as an image"),
    "half a picture": (file(Image.fromarray(RGB))[:-40], "cannot be read as an image"),
    "a number": (3, "'image' is a int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused(name):
    given, told = REFUSED[name]
    with pytest.raises(ValueError, match=told):
        picture(given)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"there is no picture '.*gone\.png'"):
        picture(tmp_path / "gone.png")


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "PA", "La", "RGBa"])
def test_what_is_transparent_lies_on_white(mode):
    clear = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    given = clear.convert("LA").convert(mode) if mode == "La" else clear if mode in ("P", "PA") else clear.convert(mode)
    if mode in ("P", "PA"):
        given = Image.new(mode, (3, 2), 0 if mode == "P" else (0, 0))
        given.putpalette([0, 0, 0] * 256)
        given.info.update({"transparency": 0} if mode == "P" else {})
    for channels in (1, 3):
        assert np.asarray(coloured(picture(given), channels)).min() == 255
    assert np.asarray(coloured(picture(pictures.content(given)), 3)).min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_every_mode_has_colours(mode):
    image = Image.new("LAB", (9, 6), (50, 0, 0)) if mode == "LAB" else Image.fromarray(RGB).convert(mode)
    for channels, shape in ((1, (1, 5, 5)), (3, (3, 5, 5))):
        assert pictures.pixels(pictures.content(image), 5, channels).shape == shape


def test_the_first_frame_counts():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    given = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.unique(np.asarray(coloured(picture(given), 1))).tolist() == [10]
