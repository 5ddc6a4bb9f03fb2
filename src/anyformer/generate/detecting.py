"""Boxes of things in pictures. B pictures of a batch, N queries, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.generate.classifying import names_of
from anyformer.generate.decoding import evaluating
from anyformer.generate.embedding import check, inputs_of
from anyformer.media import boxes as forms
from anyformer.media.picture import coloured, picture, pillow

COLOURS = ("#d81b60", "#1e88e5", "#004d40", "#8e24aa", "#f4511e", "#3949ab", "#00897b", "#6d4c41")


@dataclass(frozen=True)
class Found:
    """A thing in a picture: its class, how sure it is, and its box in pixels of the upright original."""

    name: str
    score: float
    box: tuple[float, float, float, float]  # left, top, right, bottom


@torch.inference_mode()
def detect(model: Any, pictures: Sequence[Any], threshold: float = 0.5, batch: int = 8) -> list[list[Found]]:
    """The things in each picture, the surest first.

    A query answers with its likeliest class but "no object"; no two boxes are ever merged.

    Args:
        model: one with heads of boxes and classes (DETR) and a processor.
        pictures: of any kind that `media.picture` reads.
        threshold: the least score, from 0 to 1.
        batch: pictures at once; their sizes may differ, and no result depends on the others.

    Raises:
        ValueError: without pictures, for another model, a threshold outside 0 to 1, or an unreadable picture.

    Example:
        detect(af.load("runs/boxes"), ["street.jpg"], threshold=0.7)
    """
    check(pictures, batch)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability from 0 to 1, got {threshold}")
    if "boxes" not in getattr(model, "heads", {}) or "classes" not in model.heads:
        raise ValueError(
            f"{type(model).__name__} has no heads of boxes and classes; `anyformer train --model detr` on pictures "
            "with boxes makes one that has"
        )
    found: list[list[Found]] = []
    with evaluating(model):
        for at in range(0, len(pictures), batch):
            images = [picture(one) for one in pictures[at : at + batch]]
            output = model(**inputs_of(model, images))
            for image, (scores, classes, boxes) in zip(images, answers(output), strict=True):
                names = names_of(model, output.heads["classes"].shape[-1] - 1)
                order = scores.argsort(descending=True)
                order = order[scores[order] >= threshold]
                corners = forms.pixels(boxes[order], image.height, image.width)
                rows = zip(classes[order].tolist(), scores[order].tolist(), corners.tolist(), strict=True)
                found.append([Found(names[c], score, tuple(box)) for c, score, box in rows])
    return found


def answers(output: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Score, class and box of each query of each picture, from a model's output: (N,), (N,), and corners (N, 4) as
    shares of the picture."""
    probable = output.heads["classes"].float().softmax(-1)[..., :-1]  # (B, N, C), without no object
    corners = forms.converted(output.heads["boxes"].float(), "centre", "corners").clamp(0, 1)
    scores, classes = probable.max(-1)
    return list(zip(scores, classes, corners, strict=True))


def drawn(source: Any, found: Sequence[Found], out: str | Path) -> Path:
    """A picture with its boxes, names and scores, written to a file; its ending says the format.

    Raises:
        ValueError: for an ending that Pillow does not write.
    """
    image = coloured(picture(source), 3).copy()
    pen = pillow("PIL.ImageDraw").Draw(image)
    kinds = {name: i for i, name in enumerate(dict.fromkeys(one.name for one in found))}
    thick = max(1, round(min(image.size) / 200))
    font = pillow("PIL.ImageFont").load_default(max(9, min(image.size) // 32))
    for one in reversed(found):  # the surest on top
        colour = COLOURS[kinds[one.name] % len(COLOURS)]
        left, top, right, bottom = one.box
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=thick)
        words = f"{one.name} {one.score:.2f}"
        place = pen.textbbox((left, max(0, top)), words, font=font)
        pen.rectangle(place, fill=colour)
        pen.text((left, max(0, top)), words, fill="white", font=font)
    try:
        image.save(out)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{out} cannot be written as a picture: {error}; use .png or .jpg") from None
    return Path(out)
