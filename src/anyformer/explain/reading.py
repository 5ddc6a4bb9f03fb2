"""The words of a command line as one call of a model: a text, a picture, a sound, a series; and how it is shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.explain import proteins
from anyformer.explain import reading_more as more
from anyformer.explain.attribution import named
from anyformer.explain.target import Target
from anyformer.generate import forecasting
from anyformer.generate.embedding import inputs_of
from anyformer.generate.folding import folds
from anyformer.generate.paths import ctc_head
from anyformer.generate.transcribing import processor_of
from anyformer.hub.processors import assumed
from anyformer.media.series import read_series
from anyformer.media.sound import sound
from anyformer.skeletons.base import Output

DRAWS = 50  # of a forecast that is written step by step


@dataclass(frozen=True)
class Reading:
    """One call and what a person sees of it.

    Args:
        inputs: the tensors by name. kind: text, picture, sound, series, pair (a picture and a text), graph, episode or
            protein. name: of the file, or the text.
        picture: the pixels as a data URL, or None.
        wave: the loudness of the sound, or the values of the series, in order of time; or None.
        seconds: the length of the sound that the model reads, else None.
        target, at: what is explained if that is not a token or a class of the model: the similarity of a pair; the last
            step of an episode.
        labels: of units that have names: the kinds of nodes, residues.
        spectrogram: of a sound, see `reading_more.spectrogram`.
        unknown: the id that stands for no information, of ids that have no baseline in between.
        pairs: of an output the maps of pairs of units.
    """

    inputs: dict[str, Tensor]
    kind: str
    name: str
    picture: str | None = None
    wave: list[float] | None = None
    seconds: float | None = None
    target: Target = None
    at: int | None = None
    labels: dict[str, list[str]] = field(default_factory=dict)
    spectrogram: dict[str, Any] | None = None
    unknown: int | None = None
    pairs: Callable[[Output], list[dict[str, Any]]] | None = None


def read(model: Any, item: str, answer: str | None = None, target: Target = None, msa: str | None = None) -> Reading:
    """The call of a text, or of the file of a picture, a sound, a series, a graph, an episode or a protein, by what the
    model reads; of two towers that of a picture with the text, or the two texts, of the target.

    Raises:
        ValueError: for a file that is not there, an answer that the model does not write, a model that reads several
            media or none of these.
    """
    if model.alike:
        inputs, compared = more.pair(model, item, target)
        return Reading(inputs, "pair", Path(item).name, url(inputs["pixel_values"][0]), target=compared)
    if folds(model):
        inputs, residues, wanted, pairs = proteins.protein(model, item, target, msa)
        return Reading(inputs, "protein", Path(item).name, target=wanted, labels={"input_ids": residues},
                       unknown=proteins.UNKNOWN, pairs=pairs)  # fmt: skip
    if msa is not None:
        raise ValueError("msa: an alignment is of a protein, and this model folds none; leave it out")
    if answer is not None and not (model.generates or model.reads_source):
        raise ValueError("this model writes no answer; leave answer out")
    if model.reads_text:
        return _text(model, item, answer)
    if model.takes == "nodes":
        inputs, nodes = more.graph(model, item)
        return Reading(inputs, "graph", Path(item).name if Path(item).is_file() else item, labels={"nodes": nodes})
    if model.takes == "states":
        inputs, last = more.episode(model, item)
        return Reading(inputs, "episode", Path(item).name, at=last)
    if not Path(item).is_file():
        raise ValueError(f"{item!r} is no file, and this model reads {model.takes}, no text")
    makers = {"pixel_values": _picture, "input_features": _mels, "input_values": _waves, "past_values": _series}
    if model.takes not in makers:
        raise ValueError(
            f"this model reads {model.takes}, of which the command line has no form; explain it in Python: "
            "af.explain.attribute(model, inputs)"
        )
    return makers[model.takes](model, item, answer)


def _text(model: Any, text: str, answer: str | None) -> Reading:
    if len(text) < 1024 and Path(text).is_file():
        raise ValueError(
            f"{text!r} is a file, and this model reads {model.takes}, a text: pass its words, or - and the text on "
            "standard input"
        )
    inputs = named(model, text)
    extra = [] if answer is None else model.tokenizer.encode(answer, special=False)
    name = next(reversed(inputs)) if model.reads_source else model.takes
    if extra:
        inputs[name] = torch.cat((inputs[name], torch.tensor([extra], device=inputs[name].device)), 1)
    return Reading(inputs, "text", text)


def _picture(model: Any, item: str, answer: str | None) -> Reading:
    inputs = inputs_of(model, [Path(item)])
    return Reading(inputs, "picture", Path(item).name, picture=url(inputs["pixel_values"][0]))


def _mels(model: Any, item: str, answer: str | None) -> Reading:
    processor = processor_of(model)
    like = next(model.parameters())
    features = processor([sound(item)])["input_features"].to(like)
    ids = [model.begin_id, *(model.tokenizer.encode(answer, special=False) if answer else [])]
    inputs = {"input_features": features, "decoder_input_ids": torch.tensor([ids], device=like.device)}
    return Reading(
        inputs,
        "sound",
        Path(item).name,
        wave=_loudness(sound(item).at(processor.rate).samples[: processor.samples], processor.samples),
        seconds=float(processor.window),
        spectrogram=more.spectrogram(_whole(sound(item).at(processor.rate).samples, processor.samples)),
    )


def _waves(model: Any, item: str, answer: str | None) -> Reading:
    if ctc_head(model) is None:
        raise ValueError("this model of sound has no CTC head, so no letter has a score; load it with task ctc")
    processor: Any = model.processor or assumed(model)
    like = next(model.parameters())
    inputs = {
        n: v.to(like) if v.is_floating_point() else v.to(like.device) for n, v in processor([sound(item)]).items()
    }
    samples = inputs["input_values"][0].cpu().numpy()
    return Reading(
        inputs, "sound", Path(item).name, wave=_loudness(samples, len(samples)), seconds=len(samples) / processor.rate,
        spectrogram=more.spectrogram(samples),
    )  # fmt: skip


def _series(model: Any, item: str, answer: str | None) -> Reading:
    processor, _ = forecasting.checked(model, None)
    every = read_series(item, None)
    if len(every) != 1:
        raise ValueError(f"{item} holds {len(every)} series; explain a table with one")
    one = every[0]
    inputs = processor([forecasting.window(model, processor, one, len(one))])
    if model.stepwise:  # each step is written behind those before: the medians of the model's own forecast
        ahead = torch.from_numpy(forecasting.forecast(model, [one], samples=DRAWS)[0].quantile(0.5))[None]  # (1, H, C)
        inputs["future_values"] = (ahead if inputs["past_values"].ndim == 3 else ahead[..., 0]).to(
            inputs["past_values"]
        )
    values = inputs["past_values"][0].double().reshape(inputs["past_values"].shape[1], -1)[:, 0]
    return Reading(dict(inputs), "series", Path(item).name, wave=values.tolist())


def _loudness(samples: np.ndarray, count: int, parts: int = 240) -> list[float]:
    """The loudness of `parts` pieces of a sound that is `count` samples long with its silence."""
    pieces = np.array_split(_whole(samples, count), min(parts, count))
    return [float(np.sqrt(np.mean(p**2))) for p in pieces]


def _whole(samples: np.ndarray, count: int) -> np.ndarray:
    """A sound with the silence that the model hears behind it, or its beginning."""
    padded = np.zeros(count, dtype=np.float64)
    padded[: len(samples)] = samples[:count]
    return padded


def url(pixels: Tensor) -> str:
    """Pixels (C, height, width) of any range as the data URL of a PNG."""
    from anyformer.media.picture import pillow

    values = pixels.detach().float().cpu()
    low, high = values.amin(), values.amax()
    bytes_ = ((values - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = pillow().fromarray(bytes_[..., 0] if bytes_.shape[-1] == 1 else bytes_[..., :3])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
