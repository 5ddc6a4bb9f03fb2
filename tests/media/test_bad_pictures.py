"""Pictures and clips that nobody meant: refused within a second without being decoded, or read by a written rule."""

import io
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.generate.showing import show
from anyformer.hub.processors import CubeProcessor, ImageProcessor, from_scratch, trained
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.media.clip import clip
from anyformer.media.picture import picture

HALF = (0.5,) * 3


def bomb(width: int, height: int) -> bytes:
    """A PNG that says these sides, of a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" + b"\xff" * 1000)  # the rest is never asked for
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (9_500, 9_500, "9500 x 9500 pixels, and 89,478,485 are the most"),
        (60_000, 60_000, "decompression bomb"),
        (2**31 - 1, 2**31 - 1, "cannot be read as an image"),
    ],
)
def test_a_huge_picture_is_refused_before_it_is_decoded(width: int, height: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(bomb(width, height))
    began = time.process_time()
    with pytest.raises(ValueError, match=rf"huge\.png.*{said}"):
        picture(tmp_path / "huge.png")
    assert time.process_time() - began < 1


def test_a_long_clip_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("L", (300, 200), i) for i in range(20)]
    frames[0].save(tmp_path / "long.gif", save_all=True, append_images=frames[1:], duration=40)
    assert len(clip(str(tmp_path / "long.gif")).frames) == 20
    monkeypatch.setattr("anyformer.media.clip.MOST", 1_199_999)
    with pytest.raises(ValueError, match=r"long\.gif has 20 frames or more of 300 x 200, and 1,199,999 pixels"):
        clip(str(tmp_path / "long.gif"))


def films(monkeypatch: pytest.MonkeyPatch, *times: float | None, fault: str = "") -> None:
    """Puts a decoder in the place of PyAV, which finds frames with these times, or a fault."""
    frames = [SimpleNamespace(time=t, width=4, height=4, to_image=lambda: Image.new("RGB", (4, 4))) for t in times]

    class Broken(Exception):
        pass

    @contextmanager
    def opened(name: str) -> Iterator[Any]:
        if fault:
            raise Broken(fault)
        yield SimpleNamespace(decode=lambda video: iter(frames))

    monkeypatch.setitem(sys.modules, "av", SimpleNamespace(open=opened, FFmpegError=Broken))


def test_a_video_without_timestamps_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, file = [Image.new("L", (3, 2), i) for i in range(3)], tmp_path / "a.mp4"
    frames[0].save(tmp_path / "still.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"still\.gif: frame 0 has no duration; give \(frames, frames a second\)"):
        clip(tmp_path / "still.gif")
    file.write_bytes(b"no picture at all")
    films(monkeypatch, 0.0, None, 0.2)
    with pytest.raises(ValueError, match=r"a\.mp4: its frames have no timestamps; give \(frames, frames a second\)"):
        clip(file)
    films(monkeypatch, 0.0, 0.2, 0.1)
    with pytest.raises(ValueError, match=r"a\.mp4: the seconds of its frames do not go up: 0, 0\.2, 0\.1"):
        clip(file)
    films(monkeypatch, fault="moov atom not found")
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read as a video: moov atom not found"):
        clip(file)
    films(monkeypatch, 0.5, 0.75)
    assert clip(file).seconds == (0.5, 0.75) and clip(file).end == 1.0
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        clip(file)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_file_is_refused_by_name(kind: str, share: float, tmp_path: Path) -> None:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, kind)
    (tmp_path / "cut.img").write_bytes(out.getvalue()[: int(share * len(out.getvalue()))])
    with pytest.raises(ValueError, match=r"cut\.img.*(cannot be read as an image|truncated)"):
        picture(tmp_path / "cut.img")


ODD = {
    "one pixel": Image.new("RGB", (1, 1), (10, 200, 30)),
    "one row": Image.new("RGB", (90, 1), (10, 200, 30)),
    "grey": Image.new("L", (30, 20), 100),
    "CMYK": Image.new("RGB", (30, 20), (10, 200, 30)).convert("CMYK"),
    "palette": Image.new("RGB", (30, 20), (10, 200, 30)).convert("P"),
    "transparent": Image.new("RGBA", (30, 20), (0, 0, 0, 0)),
    "16 bits": Image.fromarray(np.full((20, 30), 40_000, np.uint16)),
}
PROCESSORS: dict[str, Any] = {
    "ViT": trained("ViTImageProcessor", 12, 12, 3),
    "CLIP": ImageProcessor("CLIPImageProcessor", True, 12, 3, (12, 12), image_mean=HALF, image_std=HALF),
    "DETR": from_scratch(3),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", PROCESSORS)
def test_odd_pictures_have_numbers_in_every_processor(kind: str, name: str) -> None:
    processor, began = PROCESSORS[kind], time.process_time()
    values = processor(ODD[name])["pixel_values"]
    assert values.ndim == 4 and values.shape[1] == 3 and torch.isfinite(values).all()
    if kind == "ViT":
        seen = processor.pictures(values.numpy())[0].reshape(-1, 3)
        wanted = {"grey": (100,) * 3, "transparent": (255,) * 3, "16 bits": (156,) * 3}.get(name, (10, 200, 30))
        assert np.abs(seen.mean(0) - wanted).max() < 12  # a palette rounds
    assert time.process_time() - began < 1


def test_a_longer_side_than_two_hundred_of_the_other_is_named() -> None:
    """Qwen's rule for pictures in their own proportions."""
    processor = CubeProcessor(image_mean=HALF, image_std=HALF)
    assert torch.isfinite(processor(ODD["one pixel"])["pixel_values"]).all()
    with pytest.raises(ValueError, match="200"):
        processor(Image.new("RGB", (3000, 1)))


def test_what_the_model_sees_is_the_picture_cropped_and_brought_back() -> None:
    model = af.build("clip", "tiny").eval()
    gradient = np.tile(np.linspace(0, 255, 40).astype(np.uint8)[None, :, None], (20, 1, 3))
    model.processor = ImageProcessor(
        "CLIPImageProcessor", True, 10, 3, (10, 10), image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.4)
    )
    seen = show(model, gradient)
    assert seen.given == (20, 40) and seen.seen == (10, 10) and seen.kept == 0.5
    assert np.array_equal(seen.pixels.transpose(2, 0, 1), model.processor.pixels(gradient))
    values = model.processor.values(gradient)
    assert (seen.least, seen.most) == (values.min(), values.max()) and seen.mean == pytest.approx(values.mean((1, 2)))
    assert len(seen.steps) > 2
    model.processor = None
    with pytest.raises(ValueError, match=r"clip has no preprocessor_config\.json"):
        show(model, gradient)
    with pytest.raises(ValueError, match="gpt sees no pictures"):
        show(af.build("gpt", "tiny"), gradient)


def test_a_picture_for_a_model_of_text_is_refused() -> None:
    model = af.build("gpt", "tiny").eval()
    model.tokenizer = Tokenizer.bytes_level()
    with pytest.raises(ValueError, match="pictures"):
        af.generate.generate(model, "a", images=[ODD["grey"]])
    with pytest.raises(ValueError, match="pixel_values"):
        model(pixel_values=torch.zeros(1, 3, 8, 8))
