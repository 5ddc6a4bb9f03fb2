"""Pictures of a class or a text. N pictures, B rows, C channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.value import nearest
from anyformer.generate.classifying import names_of
from anyformer.generate.decoding import evaluating
from anyformer.generate.diffusion import sample
from anyformer.generate.embedding import inputs_of

BATCH = 64  # pictures that go through the model at once


def paint(
    model: Any,
    what: str | Sequence[str],
    *,
    steps: int = 50,
    guidance: float = 2.0,
    seed: int = 0,
    sampler: str | None = None,
    eta: float = 0.0,
    count: int = 1,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Pictures that a model makes of noise, of what is asked for.

    Args:
        model: of `anyformer train --model dit`, for example: it has a processor and a noising.
        what: a class by its name (or number), or a text, as the model learned; or several.
        steps: of the sampler.
        guidance: 1: the model as it is; more: less variety, and closer to what is asked for; 0: of anything.
        seed: of the noise.
        sampler: euler (flow matching alone), ddim or ddpm; by default that of the model's noising. eta: of ddim.
        count: pictures of each.
        size: height and width in pixels; by default those of training.

    Returns:
        (N, height, width, C) uint8, `count` of the first, then of the second …

    Raises:
        ValueError: for a class that the model does not have, with the nearest names, a model that makes no pictures, a
            size that is no whole number of patches, or an option of the sampler.
    """
    words = [what] if isinstance(what, str) else list(what)
    if not words or isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"paint needs something to paint and a count of at least 1; got {what!r:.60} and {count!r}")
    _check(model)
    front = model.entrances()[0].front
    height, width = size or (front.image, front.image)
    rows = [word for word in words for _ in range(count)]
    noise, made = torch.Generator().manual_seed(seed), []
    with evaluating(model):
        for at in range(0, len(rows), BATCH):
            told, nothing = about(model, rows[at : at + BATCH])
            shape = (front.channels, height, width)
            made.append(sample(model, shape, told, nothing, steps, guidance, sampler, eta, noise))
    return model.processor.pictures(torch.cat(made).float().cpu().numpy())


@torch.inference_mode()
def repaint(model: Any, pictures: Sequence[Any]) -> np.ndarray:
    """Pictures as a discrete autoencoder (dVAE) says them, by the likeliest code of each cell.

    Args:
        pictures: of any kind that `media.picture` reads.

    Returns:
        (N, height, width, C) uint8, in the size of the model.

    Raises:
        ValueError: for a model without codes or without a processor.
    """
    if not hasattr(model, "coded") or model.processor is None:
        what = "no codes" if not hasattr(model, "coded") else "no processor"
        raise ValueError(f"a {type(model).__name__} has {what}; train one: anyformer train --model dvae --data …")
    like, made = next(model.parameters()), []
    with evaluating(model):
        for at in range(0, len(pictures), BATCH):
            pixels = model.processor(list(pictures[at : at + BATCH]))["pixel_values"].to(like)
            made.append(model(pixel_values=pixels).heads["pixels"].float().cpu().numpy())
    return model.processor.pictures(np.concatenate(made))


def about(model: Any, words: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The subjects of rows, and those of rows about nothing, as inputs of the model."""
    if "input_ids" in model.inputs():
        return inputs_of(model, list(words)), inputs_of(model, [""] * len(words))
    condition = next(e.front for e in model.entrances() if e.front.main == "class_labels")
    names, device = names_of(model, condition.nothing), next(model.parameters()).device
    labels = torch.tensor([_number(names, word) for word in words], device=device)
    return {"class_labels": labels}, {"class_labels": torch.full_like(labels, condition.nothing)}


def _number(names: Sequence[str], word: str) -> int:
    """The number of a class, by its name or as text."""
    if word in names:
        return names.index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    raise ValueError(f"the model has no class {word!r}{nearest(word, list(names))}; it has {shown}")


def _check(model: Any) -> None:
    """Raises ValueError for a model that does not make pictures of words."""
    reads = set(model.inputs())
    if "timestep" not in reads:
        raise ValueError(f"a {type(model).__name__} makes no pictures; train one: anyformer train --model dit --data …")
    if not reads & {"input_ids", "class_labels"}:
        raise ValueError(
            f"this model reads {', '.join(sorted(reads))}, which other models make of a text; make them, and call "
            "generate.diffusion.sample"
        )
    if model.processor is None:
        raise ValueError(
            "the model has no preprocessor_config.json, so the meaning of its numbers is unknown: they may be "
            "latents of an autoencoder; generate.diffusion.sample returns them"
        )
