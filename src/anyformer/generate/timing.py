"""Times of words by cross-attention: the path through its maps with the most weight. T tokens, S frames, H heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.state import Memory
from anyformer.core.taps import Taps
from anyformer.generate.speech import Marks

WIDTH = 7  # frames of the median
UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")  # languages that are written without spaces


@dataclass(frozen=True)
class Word:
    """A word with the time of its beginning and end."""

    text: str
    start: float
    end: float


def word_times(
    model: Any,
    memory: Memory,
    opening: Sequence[int],
    marks: Marks,
    tokens: Sequence[int],
    frames: int,
    settings: Mapping[str, Any],
    language: str,
) -> list[Word]:
    """The words of some tokens with their times, in frames of the encoder.

    The maps of the alignment heads are normalised over the tokens, smoothed by a median over 7 frames, and averaged; a
    word begins where the path of most weight (dynamic time warping) reaches its first token.

    Args:
        opening: the tokens in front. frames: those with sound.
        settings: `alignment_heads`, (layer, head) each; without them all heads of the later half of the layers.
    """
    if not tokens:
        return []
    ids = [*opening, marks.untimed, *tokens, marks.end]
    state = model.start(1, len(ids))
    state.memory = memory
    heads = _heads(model, settings)
    paths = {layer: f"decoder.blocks.{layer}.cross" for layer, _ in heads}
    with Taps(model, *(f"{path}.weights" for path in paths.values())) as taps:
        model(decoder_input_ids=torch.tensor([ids], device=memory.stream.device), state=state)
    maps = torch.stack([taps[f"{paths[layer]}.weights"][0, head, :, :frames].float() for layer, head in heads])
    maps = maps / maps.sum(-1, keepdim=True).clamp(min=1e-12)  # (H, T, S), over the frames with sound alone
    maps = (maps - maps.mean(-2, keepdim=True)) / maps.std(-2, keepdim=True, correction=0).clamp(min=1e-12)
    weight = median(maps).mean(0)[len(opening) : -1]  # (T, S): a token's row predicts it
    begins = [*path_times(weight.cpu().numpy()), frames][: len(tokens) + 2]
    words, at = [], 0
    for text, count in grouped(model.tokenizer, tokens, language):
        words.append(Word(text, float(begins[at]), float(begins[at + count])))
        at += count
    return words


def _heads(model: Any, settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The alignment heads as (layer, head).

    Raises:
        ValueError: if the files name one that the model does not have.
    """
    layers = len(model.decoder.blocks)
    count = model.decoder.blocks[0].cross.heads
    named = settings.get("alignment_heads")
    if not named:
        return [(layer, head) for layer in range(layers // 2, layers) for head in range(count)]
    for pair in named:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not (0 <= pair[0] < layers and 0 <= pair[1] < count):
            raise ValueError(f"alignment_heads names {pair}; the model has {layers} layers of {count} heads")
    return [(int(layer), int(head)) for layer, head in named]


def median(x: Tensor) -> Tensor:
    """The median of each value and its neighbours along the last axis, mirrored at the ends; same shape."""
    side = WIDTH // 2
    if x.shape[-1] <= side:
        return x
    wide = torch.nn.functional.pad(x, (side, side), mode="reflect")
    return wide.unfold(-1, WIDTH, 1).sort(-1).values[..., side]


def path_times(weight: np.ndarray) -> list[int]:
    """The frame at which the path of most weight through (T, S) enters each row: T numbers.

    The path goes from the first corner to the last one, one row, one column or both at a time (dynamic time warping).
    """
    rows, columns = weight.shape
    cost = np.full((rows + 1, columns + 1), np.inf)
    cost[0, 0] = 0.0
    came = np.zeros((rows + 1, columns + 1), np.int8)  # 0 from both, 1 from the row above, 2 from the column before
    for i in range(1, rows + 1):
        above, row, steps = cost[i - 1].tolist(), [np.inf] * (columns + 1), weight[i - 1].tolist()
        for j in range(1, columns + 1):
            both, up, left = above[j - 1], above[j], row[j - 1]
            if both < up and both < left:
                best, came[i, j] = both, 0
            elif up < both and up < left:
                best, came[i, j] = up, 1
            else:
                best, came[i, j] = left, 2
            row[j] = best - steps[j - 1]
        cost[i] = row
    i, j, entered = rows, columns, [0] * rows
    while i > 0 and j > 0:
        entered[i - 1] = j - 1
        step = came[i, j]
        i, j = i - (step != 2), j - (step != 1)
    return entered


def grouped(tokenizer: Any, tokens: Sequence[int], language: str) -> list[tuple[str, int]]:
    """The words of some tokens, each with its number of tokens; together all of the text and all of the tokens.

    A word begins with a space; marks belong to the word before. In languages without spaces, each character or piece of
    several is a word.
    """
    pieces: list[tuple[str, int]] = []
    begun = 0
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[begun:end], skip_special=False)
        if "\ufffd" not in text or end == len(tokens):  # else half of a character
            pieces.append((text, end - begun))
            begun = end
    words = _joined(pieces, lambda text: text.startswith(" ") or language in UNSPACED)
    return _joined(words, lambda text: any(c.isalnum() for c in text))


def _joined(pieces: list[tuple[str, int]], begins: Callable[[str], bool]) -> list[tuple[str, int]]:
    """The pieces, each that does not begin anything joined to the one before."""
    found: list[tuple[str, int]] = []
    for text, count in pieces:
        if not found or begins(text):
            found.append((text, count))
        else:
            found[-1] = found[-1][0] + text, found[-1][1] + count
    return found
