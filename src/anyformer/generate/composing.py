"""Music after a text: codes step by step, and their sound. B sounds, T frames, L steps, Q books, V codes, S tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anyformer.generate.cascade import Cascade, compose_stages
from anyformer.generate.decoding import evaluating
from anyformer.generate.options import Options
from anyformer.generate.prompts import tokenizer_of
from anyformer.generate.recoding import decode, encode, processor_of
from anyformer.generate.sampling import Sampler
from anyformer.hub.text.reading import reading
from anyformer.media.sound import Sound, sound
from anyformer.parts.sound.pieces import Coded

GUIDANCE = 3.0  # as published
APART = 8  # bits of a seed that tell books apart: the rows of one sound draw other numbers


def compose(
    model: Any,
    texts: str | Sequence[str] = "",
    *,
    seconds: float = 5.0,
    guidance: float | None = None,
    temperature: float = 1.0,
    top_k: int | None = 250,
    top_p: float | None = None,
    seed: int | None = None,
    prompt: Any = None,
) -> list[Sound]:
    """Music about each text.

    Args:
        model: MusicGen, or a `cascade.Cascade` of MusicLM.
        texts: what it is about; "" is about nothing.
        seconds: of new sound.
        guidance: w of free + w (told - free), the scores with and without the text: 1 = with it, 0 = without; by
            default 3. A cascade has none.
        temperature, top_k, top_p, seed: as in `generate`; temperature 0 takes the likeliest codes.
        prompt: for MusicGen, a sound that the music goes on from, of any kind that `media.sound` reads; what is
            returned begins with it.

    Returns:
        A sound for each text, at the rate of the codec.

    Raises:
        ValueError: naming the argument, for a model that writes no codes of sound, one without a codec, more seconds
            than its context holds, or a sound that is none.
    """
    rows = [texts] if isinstance(texts, str) else list(texts)
    if not rows or not all(isinstance(text, str) for text in rows):
        raise ValueError(f"texts must be a text or several; got {texts!r:.60}")
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"seconds must be a number above 0; got {seconds!r}")
    draws: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if isinstance(model, Cascade):
        if prompt is not None or guidance not in (None, 1):
            raise ValueError(
                "a cascade goes on from no prompt, since no part of it makes semantic codes, and has no guidance"
            )
        return [compose_stages(model, text, seconds=seconds, **draws) for text in rows]
    codec = codec_of(model)
    known = None if prompt is None else codes_of_prompt(model, prompt).expand(len(rows), -1, -1)
    first = 0 if known is None else known.shape[1]
    frames = first + max(1, round(seconds * codec.rate / codec.embed.hop))
    books = len(model.head.books)
    if model.context is not None and (steps := model.pattern.steps(frames, books)) > model.context:
        most = (model.context - steps + frames) * codec.embed.hop / codec.rate
        raise ValueError(
            f"seconds={seconds:g}: with the prompt these are {steps} steps, and the context of this model is "
            f"{model.context}, about {most:.1f} seconds in all"
        )
    inputs = {} if model.encoder is None else texts_of(model, rows)
    if model.encoder is None and any(rows):
        raise ValueError("this model has no text encoder: it composes about nothing, the text ''")
    codes = write(
        model,
        frames,
        rows=len(rows),
        inputs=inputs,
        guidance=1.0 if model.encoder is None else GUIDANCE if guidance is None else guidance,
        known=known,
        **draws,
    )
    return [sounding(model, row[None]) for row in codes]


@torch.inference_mode()
def write(
    model: Any,
    frames: int,
    *,
    rows: int = 1,
    inputs: dict[str, Tensor] | None = None,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Codes of sounds, (B, T, Q), by a decoder of stacked codes, in the order of its pattern.

    Args:
        frames: T. rows: B.
        inputs: of the text encoder, (B, S); None without one.
        guidance, temperature, top_k, top_p, seed: as in `compose`.
        known: (B, n, Q) the first codes of each sound, which stay.

    Raises:
        ValueError: naming the argument, for values that make no sense.
    """
    if not isinstance(guidance, int | float) or not math.isfinite(guidance):
        raise ValueError(f"guidance must be a number, 1 = the text as it is; got {guidance!r}")
    pad, books, device = model.embed.pad, len(model.head.books), model.head.books[0].weight.device
    known = torch.zeros(rows, 0, books, dtype=torch.long) if known is None else known
    if known.shape[0] != rows or known.shape[2] != books or known.shape[1] >= frames:
        raise ValueError(f"known must be ({rows}, fewer than {frames}, {books}), got {tuple(known.shape)}")
    free = inputs is not None and guidance != 1
    told = {} if inputs is None else {n: torch.cat((v, torch.zeros_like(v))) if free else v for n, v in inputs.items()}
    places = model.pattern.frames(frames, books)  # (L, Q)
    whole = torch.cat((known, known.new_zeros(rows, frames - known.shape[1], books)), 1)
    laid = torch.cat((known.new_full((rows, 1, books), pad), model.pattern.laid(whole, pad)), 1).to(device)
    new = (places >= known.shape[1]).to(device)  # what is written here, (L, Q)
    seeds = None if seed is None else [(seed << APART) + book for _ in range(rows) for book in range(books)]
    options = Options(0, temperature, top_k, top_p, None, None, (), seeds, True)
    sampler = Sampler(options, [[]] * (rows * books), len(model.head.books[0].weight), device)
    at = int(new.any(1).nonzero()[0])
    state, fed = model.start(rows * (1 + free), len(places)), 0
    with evaluating(model):
        for step in range(at, len(places)):
            piece = torch.cat([laid[:, fed : step + 1]] * (1 + free))
            scores = model(**told, **{f"{model.target}input_ids": piece}, state=state, last=True).logits[:, -1]
            told, fed = {}, step + 1
            if free:
                with_text, without = scores.chunk(2)
                scores = without + guidance * (with_text - without)
            codes = sampler.choose(scores.flatten(0, 1)).view(rows, books)
            laid[:, step + 1] = torch.where(new[step], codes, laid[:, step + 1])
    return model.pattern.back(laid[:, 1:], frames)


def texts_of(model: Any, rows: Sequence[str]) -> dict[str, Tensor]:
    """The inputs of the text encoder, (B, S); a row without a text is all padding."""
    ids = [reading(tokenizer_of(model, "texts"), text, ends=True).ids if text else [] for text in rows]
    width = max(1, *map(len, ids))
    made = {name: torch.zeros(len(rows), width, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    for row, some in enumerate(ids):
        made["input_ids"][row, : len(some)] = torch.tensor(some, dtype=torch.long)
        made["attention_mask"][row, : len(some)] = 1
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in made.items()}


def codec_of(model: Any) -> Any:
    """The codec of a decoder of codes of sound.

    Raises:
        ValueError: for another model, or one whose codec has codes that it does not say.
    """
    codec = getattr(model, "codec", None)
    if not hasattr(model, "pattern"):
        what = model.page or type(model).__name__
        raise ValueError(f"{what} writes no codes of sound; `compose` is for decoders such as MusicGen")
    if codec is None:
        raise ValueError("this model has no codec, so its codes have no sound; `generate.composing.write` returns them")
    books = len(model.head.books) // (2 if model.stereo else 1)
    if len(codec.codes.books) < books or codec.codes.vocab != model.embed.pad or codec.embed.channels != 1:
        raise ValueError(
            f"the model says {books} books of {model.embed.pad} codes for a channel, and its codec has "
            f"{len(codec.codes.books)} of {codec.codes.vocab}, for {codec.embed.channels} channels"
        )
    if codec.embed.piece is not None or codec.embed.normalise:
        raise ValueError("its codec keeps more than codes (pieces, or their loudness), which the model does not say")
    return codec


def codes_of_prompt(model: Any, prompt: Any) -> Tensor:
    """The codes of a sound, (1, T, Q); of stereo, those of left and right alternate."""
    return codes_of_sound(codec_of(model), prompt, len(model.head.books), model.stereo)


def codes_of_sound(codec: Any, source: Any, books: int, stereo: bool) -> Tensor:
    """The first books of a sound by a codec of one channel, (1, T, Q); of stereo, left and right alternate."""
    steps = processor_of(codec)
    heard = sound(source, 2 if stereo else 1).at(steps.rate)
    sides = [heard.samples[:, i] for i in range(2)] if stereo else [heard.samples]
    each = [encode(codec, (side, heard.rate)).codes[..., : books // len(sides)] for side in sides]
    return torch.stack(each, -1).flatten(2).cpu()


def sounding(model: Any, codes: Tensor) -> Sound:
    """The sound of codes (1, T, Q)."""
    codec = codec_of(model)
    count = torch.tensor([codes.shape[1] * codec.embed.hop])
    sides = [codes[..., i::2] for i in range(2)] if model.stereo else [codes]
    made = [decode(codec, Coded(side, count, None)).samples for side in sides]
    return Sound(torch.stack([torch.from_numpy(m) for m in made], -1).numpy() if model.stereo else made[0], codec.rate)
