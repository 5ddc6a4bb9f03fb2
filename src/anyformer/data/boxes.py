"""Pictures with boxes: COCO's JSON and folders of Pascal VOC's XML.

```
set/annotations.json  set/*.jpg                       COCO: {"images": …, "annotations": …, "categories": …}
annotations/instances_val.json  val/*.jpg             the published layout of COCO
set/*.xml  set/*.jpg                                  VOC: a file for each picture
VOC2012/Annotations/*.xml  VOC2012/JPEGImages/*.jpg   the published layout of VOC
```
Boxes are those of the upright picture: one that its EXIF turns has the sides that it shows. A box that leaves the
picture by a pixel is cut. A box without area, a crowd (COCO) and a difficult object (VOC) are left out; `notes` count
them. Classes are numbered by their place in `names`: COCO's by their ids, VOC's in the order of the alphabet.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.media.boxes import inside

LARGEST = 1 << 20  # bytes of an XML file


@dataclass(frozen=True, eq=False)
class Annotated:
    """A picture's file, its stated size, and its boxes: corners in pixels (M, 4), classes (M,)."""

    path: Path
    height: int
    width: int
    boxes: Tensor
    classes: Tensor


@dataclass(frozen=True, eq=False)
class BoxSet:
    """Pictures with boxes, the names of their classes, and notes on what was left out."""

    pictures: tuple[Annotated, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def read(source: str | Path) -> BoxSet:
    """The pictures of a COCO file, or of a folder with one or with files of VOC; no picture is opened.

    Raises:
        FileNotFoundError: without such files. ValueError: naming file and picture, for content of another form, a class
            that is not listed, a picture that is missing, a box outside its picture.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".json":
        return coco(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no COCO file (.json) and no folder {str(path)!r}")
    tables = sorted(f for f in path.glob("*.json"))
    if len(tables) == 1:
        return coco(tables[0])
    if tables:
        raise ValueError(f"{path} holds {len(tables)} JSON files; name the one to read: {tables[0]}")
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise FileNotFoundError(f"{path} holds neither a COCO file (.json) nor files of Pascal VOC (.xml)")
    return voc(files)


def holds_boxes(source: str | Path) -> bool:
    """True for what `read` is for: a JSON file, or a folder with one that has annotations, or with files of VOC."""
    path = Path(source).expanduser()
    if path.is_file() or not path.is_dir():
        return path.suffix == ".json"
    tables = list(path.glob("*.json"))
    if len(tables) == 1:
        return '"annotations"' in tables[0].read_text(encoding="utf-8", errors="replace")
    return any(file for part in ("", "Annotations") for file in (path / part).glob("*.xml"))


def coco(path: Path) -> BoxSet:
    """The pictures of a COCO file."""
    try:
        content = json.loads(path.read_text("utf-8"))
        images, objects, classes = (content[name] for name in ("images", "annotations", "categories"))
        named = {c["id"]: str(c["name"]) for c in classes}
        of_image: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in images}
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is no COCO file with images, annotations and categories: {error!r:.80}") from None
    order, left = {number: place for place, number in enumerate(sorted(named))}, Counter[str]()
    for one in objects:
        if not isinstance(one, Mapping) or one.get("image_id") not in of_image:
            raise ValueError(f"{path}: an annotation of no listed image: {one!r:.80}")
        if one.get("category_id") not in named:
            kind, known = one.get("category_id"), ", ".join(map(str, sorted(named)[:8]))
            raise ValueError(f"{path}: annotation {one.get('id')} has the category {kind!r}, the file lists {known}")
        if one.get("iscrowd"):
            left["crowds"] += 1
        else:
            of_image[one["image_id"]].append(one)
    pictures = []
    for image in images:
        where = f"{path}, image {image.get('id')}"
        own = of_image[image["id"]]
        file = _beside(path.parent, image.get("file_name"), path.stem.removeprefix("instances_"), where)
        size = _sides(image.get("height"), image.get("width"), where)
        boxes = [one.get("bbox") for one in own]
        numbers = [order[one["category_id"]] for one in own]
        pictures.append(_annotated(file, size, boxes, "coco", numbers, where, left))
    return _set(pictures, [named[number] for number in sorted(named)], left, path)


def voc(files: Iterable[Path]) -> BoxSet:
    """The pictures of files of Pascal VOC, which count pixels from 1."""
    rows, left = [], Counter[str]()
    for path in files:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes, more than a list of boxes needs")
        text = path.read_bytes()
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise ValueError(f"{path} declares entities, which no file of boxes needs; it is not read")
        try:
            root = xml.fromstring(text)
        except xml.ParseError as error:
            raise ValueError(f"{path} is no XML: {error}") from None
        size = _sides(root.findtext("size/height"), root.findtext("size/width"), str(path))
        name = root.findtext("filename") or f"{path.stem}.jpg"
        file = _beside(path.parent, name, "", str(path), path.parent.parent / "JPEGImages")
        boxes, names = [], []
        for one in root.iter("object"):
            if (one.findtext("difficult") or "0").strip() == "1":
                left["difficult objects"] += 1
                continue
            corners = [one.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
            try:
                left_, top, right, bottom = (float(value or "") for value in corners)
            except ValueError:
                raise ValueError(
                    f"{path}: an object's bndbox has the sides {corners}; four numbers are wanted"
                ) from None
            boxes.append([left_ - 1, top - 1, right, bottom])
            names.append((one.findtext("name") or "").strip())
        rows.append((file, size, boxes, names, str(path)))
    every = sorted({name for row in rows for name in row[3]})
    pictures = [_annotated(file, size, boxes, "corners", [every.index(n) for n in names], where, left)
                for file, size, boxes, names, where in rows]  # fmt: skip
    return _set(pictures, every, left, rows[0][0].parent)


def _beside(folder: Path, name: Any, part: str, where: str, other: Path | None = None) -> Path:
    """The file of a picture: beside the list, in a folder `images`, or in the published layouts."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: it names no file of a picture")
    places = [folder, folder / "images", *([folder.parent / part] if part else []), *([other] if other else [])]
    for place in places:
        if (place / name).is_file():
            return (place / name).absolute()
    raise ValueError(f"{where}: there is no picture {name!r} in {', '.join(map(str, places))}")


def _sides(height: Any, width: Any, where: str) -> tuple[int, int]:
    try:
        sides = int(height), int(width)
    except (TypeError, ValueError):
        sides = 0, 0
    if min(sides) < 1:
        raise ValueError(f"{where}: height and width are {height!r} and {width!r}; whole numbers above 0 are wanted")
    return sides


def _annotated(
    file: Path, size: tuple[int, int], boxes: list[Any], form: str, classes: list[int], where: str, left: Counter[str]
) -> Annotated:
    try:
        corners, kept = inside(boxes, form, *size)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    left["boxes without area"] += len(boxes) - len(kept)
    return Annotated(file, *size, corners, torch.tensor(classes, dtype=torch.long)[kept])


def _set(pictures: list[Annotated], names: list[str], left: Counter[str], where: Path) -> BoxSet:
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: two classes are both called {Counter(names).most_common(1)[0][0]!r}")
    if not any(len(one.boxes) for one in pictures):
        raise ValueError(f"{where}: no picture has a box")
    notes = tuple(f"{count} {what} are left out" for what, count in left.items() if count)
    return BoxSet(tuple(pictures), tuple(names), notes)
