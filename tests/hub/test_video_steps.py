"""Videos have steps of their own in the files of Qwen2-VL and Qwen2.5-Omni: read strictly, used, and written back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anyformer.hub.processors import CubeProcessor, read_processor, write_processor

HALF = [0.5, 0.5, 0.5]
TAKES = ("input_ids", "pixel_values", "grid_thw")
PICTURES: dict[str, Any] = {
    "image_mean": HALF, "image_processor_type": "Qwen2VLImageProcessor", "image_std": HALF, "merge_size": 2,
    "patch_size": 14, "size": {"longest_edge": 50_176, "shortest_edge": 3136}, "temporal_patch_size": 2,
}  # fmt: skip
VIDEOS: dict[str, Any] = {  # what transformers 5.23 writes, at other sizes
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "do_sample_frames": False,
    "fps": 4.0, "image_mean": HALF, "image_std": HALF, "max_frames": 768, "max_video_tokens": 128000, "merge_size": 2,
    "min_frames": 4, "patch_size": 14, "resample": 3, "rescale_factor": 1 / 255, "return_metadata": False,
    "size": {"longest_edge": 6272, "shortest_edge": 1568}, "temporal_patch_size": 2,
    "video_processor_type": "Qwen2VLVideoProcessor",
}  # fmt: skip
FILES = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"


def folder(place: Path, form: str, **changes: Any) -> Path:
    """The files of a processor in one of their forms."""
    place.mkdir(exist_ok=True)
    videos = {name: value for name, value in {**VIDEOS, **changes}.items() if value != "left out"}
    together = {"image_processor": PICTURES, "processor_class": "Qwen2_5_VLProcessor", "video_processor": videos}
    contents = {
        "apart": (PICTURES, videos, None),
        "together": (None, None, together),
    }[form]
    for name, content in zip(FILES, contents, strict=True):
        if content is not None:
            (place / name).write_text(json.dumps(content))
    return place


@pytest.mark.parametrize("form", ["apart", "together"])
def test_every_form_is_read_with_every_key_and_written_back(form: str, tmp_path: Path) -> None:
    read: Any = read_processor(folder(tmp_path / "one", form), None, (), TAKES)
    assert (read.least, read.most, read.rate) == (3136, 50_176, 2.0)
    assert (read.films.least, read.films.most, read.films.rate) == (1568, 6272, 4.0)
    name = "video_preprocessor_config.json" if form == "apart" else "processor_config.json"
    before = "" if form == "apart" else "video_processor."
    assert {f"{before}{key}" for key in VIDEOS} <= {line.key for line in read.ledger()[name]}
    (tmp_path / "two").mkdir()
    write_processor(tmp_path / "two", read, {})
    one, two = ({f.name: json.loads(f.read_text()) for f in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two
    assert read_processor(tmp_path / "two", None, (), TAKES) == read


def test_frames_have_the_size_and_the_rate_of_videos(tmp_path: Path) -> None:
    """A frame twice is a patch of two frames, as the published processor of pictures repeats one."""
    pil = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    read: Any = read_processor(folder(tmp_path, "apart"), None, (), TAKES)
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8))
    theirs = pil.Qwen2VLImageProcessorPil(image_mean=HALF, image_std=HALF, min_pixels=1568, max_pixels=6272)
    found, wanted = read.videos([([frame] * 2, 4.0)]), theirs([frame], return_tensors="pt")
    assert torch.equal(found["grid_thw"], wanted["image_grid_thw"]) and found["seconds"].tolist() == [0.5]
    torch.testing.assert_close(found["pixel_values"], wanted["pixel_values"], rtol=0, atol=1e-6)
    assert not torch.equal(read([frame])["grid_thw"], found["grid_thw"])  # a picture keeps more pixels


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        ("apart", {"shine": 3}, r"video_preprocessor_config\.json: .*unknown.*shine"),
        ("together", {"shine": 3}, r"/processor_config\.json: .*unknown.*shine"),
        ("apart", {"video_processor_type": "OtherVideoProcessor"}, "is OtherVideoProcessor; known is Qwen2VLVideo"),
        ("apart", {"patch_size": 16}, "patch is 16 for videos and 14 for pictures; one tower reads both"),
        ("apart", {"cap_pixels_per_frame": True}, "'cap_pixels_per_frame' is True"),
        ("apart", {"num_frames": 8}, "'num_frames' is 8"),
        ("apart", {"fps": "fast"}, "'fps'"),
        ("apart", {"image_mean": "left out"}, "lacks 'image_mean'"),
    ],
)
def test_what_cannot_be_is_refused_by_file_and_key(form: str, changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_processor(folder(tmp_path, form, **changes), None, (), TAKES)


@pytest.mark.parametrize("name", ["Qwen2VLImageProcessorPil", "Qwen2VLImageProcessorFast"])
def test_every_name_of_the_pictures_has_its_videos(name: str, tmp_path: Path) -> None:
    files = folder(tmp_path, "together") / FILES[2]
    content = json.loads(files.read_text())
    content["image_processor"]["image_processor_type"] = name
    files.write_text(json.dumps(content))
    read: Any = read_processor(tmp_path, None, (), TAKES)
    assert read.films.rate == 4.0
    content["image_processor"]["image_processor_type"] = 3
    files.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"processor_config\.json"):
        read_processor(tmp_path, None, (), TAKES)


def test_two_files_that_disagree_are_refused(tmp_path: Path) -> None:
    folder(folder(tmp_path, "apart"), "together", fps=3.0)
    with pytest.raises(ValueError, match=r"video_preprocessor_config\.json describes .* remove one of them"):
        read_processor(tmp_path, None, (), TAKES)


def test_one_that_was_made_is_written_beside_the_pictures(tmp_path: Path) -> None:
    half = (0.5,) * 3
    made = CubeProcessor(
        image_mean=half, image_std=half, films=CubeProcessor(image_mean=half, image_std=half, rate=1.0)
    )
    write_processor(tmp_path, made)
    assert {file.name for file in tmp_path.iterdir()} == set(FILES[:2])
    assert read_processor(tmp_path, None, (), TAKES) == made and "1 frames a second" in str(made)
