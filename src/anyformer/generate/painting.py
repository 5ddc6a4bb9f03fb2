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
from anyformer.generate.drawing import draw, ranked
from anyformer.generate.embedding import inputs_of
from anyformer.parts.text_and_codes import OneMedium

BATCH = 64  # pictures that go through the model at once
CANDIDATES = 16  # of which one is kept
APART = 16  # bits of a seed that tell pictures apart


def paint(
    model: Any,
    what: str | Sequence[str],
    *,
    guidance: float = 2.0,
    seed: int = 0,
    count: int = 1,
    candidates: int | None = None,
    rank: Any = None,
    steps: int | None = None,
    sampler: str | None = None,
    eta: float | None = None,
    size: tuple[int, int] | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """Pictures of what is asked for, which a model makes of noise (DiT, MMDiT) or writes as codes (DALL-E).

    Args:
        model: of `anyformer train --model dit`, for example: with a processor, and a noising or a coder.
        what: a class by its name (or number), or a text, as the model learned; or several.
        guidance: 1: the model as it is; more: less variety, and closer to what is asked for; 0: of anything.
        seed: of the noise, or of the draws.
        count: pictures of each.
        candidates: pictures of each that are made, of which `rank` keeps `count`, the most similar to their text first;
            16 by default.
        rank: a model of pictures and texts, such as CLIP; None keeps all.
        steps: of the sampler, 50 by default. sampler: euler (flow matching alone), ddim or ddpm; by default that of the
            model's noising. eta: of ddim, 0 by default. size: height and width in pixels; by default those of training.
            All four are for models that begin with noise.
        temperature, top_k, top_p: as in `generate`; for models that write codes.

    Returns:
        (N, height, width, C) uint8, `count` of the first, then of the second …

    Raises:
        ValueError: for a class that the model does not have, with the nearest names, a model that makes no pictures, a
            size that is no whole number of patches, an option of the sampler, or one of the other kind of models.
    """
    words = [what] if isinstance(what, str) else list(what)
    if not words or isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"paint needs something to paint and a count of at least 1; got {what!r:.60} and {count!r}")
    each = _made(count, candidates, rank)
    rows = [word for word in words for _ in range(each)]
    if isinstance(getattr(model, "head", None), OneMedium):
        _refuse("writes codes", steps=steps, sampler=sampler, eta=eta, size=size)
        draws = {"temperature": 1.0 if temperature is None else temperature, "top_k": top_k, "top_p": top_p}
        made = _written(model, rows, guidance, seed, draws)
    else:
        _check(model)
        _refuse("begins with noise", temperature=temperature, top_k=top_k, top_p=top_p)
        steps, eta = 50 if steps is None else steps, 0.0 if eta is None else eta
        made = _denoised(model, rows, guidance, seed, size, (steps, sampler, eta))
    if rank is None:
        return made
    kept = []
    for number, word in enumerate(words):
        some = made[number * each : (number + 1) * each]
        shares = torch.from_numpy(some).permute(0, 3, 1, 2).float() / 255  # (N, C, height, width)
        kept.append(some[ranked(rank, shares, word)[:count].tolist()])
    return np.concatenate(kept)


def _made(count: int, candidates: int | None, rank: Any) -> int:
    """The pictures that are made of each subject."""
    if rank is None:
        if candidates is not None:
            raise ValueError(f"candidates={candidates} are ranked by a model of pictures and texts; set rank, too")
        return count
    if not getattr(rank, "alike", False):
        raise ValueError("rank needs a model of pictures and texts, with vectors of one space, such as CLIP")
    made = max(count, CANDIDATES) if candidates is None else candidates
    if made < count:
        raise ValueError(f"candidates={made} are fewer than the {count} pictures that are to be kept of them")
    return made


def _refuse(kind: str, **options: Any) -> None:
    """Raises ValueError for an option of the other kind of models."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: not for this model, which {kind}; leave it out")


@torch.inference_mode()
def _written(model: Any, words: Sequence[str], guidance: float, seed: int, draws: dict[str, Any]) -> np.ndarray:
    """Pictures of the codes that a decoder draws; each has a seed of its own, whatever the number of rows."""
    if getattr(model, "coder", None) is None:
        raise ValueError(
            "the model has no dVAE, so its codes have no pictures; train it with one (anyformer train --model dalle "
            "--codes runs/codes --data …); `generate.drawing.draw` returns codes"
        )
    made = []
    for at in range(0, len(words), BATCH):
        some = words[at : at + BATCH]
        seeds = [(seed << APART) + at + i for i in range(len(some))]
        codes = draw(model, some, guidance=guidance, seed=seeds, **draws)
        made.append(model.coder.decode(codes.to(next(model.parameters()).device)).float().cpu())
    pixels = torch.cat(made).permute(0, 2, 3, 1)  # (N, height, width, C), from 0 to 1
    return (pixels * 255).round().to(torch.uint8).numpy()


def _denoised(
    model: Any,
    rows: Sequence[str],
    guidance: float,
    seed: int,
    size: tuple[int, int] | None,
    way: tuple[int, str | None, float],
) -> np.ndarray:
    """Pictures of noise; `way` is steps, sampler and eta."""
    front = model.entrances()[0].front
    height, width = size or (front.image, front.image)
    noise, made = torch.Generator().manual_seed(seed), []
    with evaluating(model):
        for at in range(0, len(rows), BATCH):
            told, nothing = about(model, rows[at : at + BATCH])
            steps, sampler, eta = way
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
