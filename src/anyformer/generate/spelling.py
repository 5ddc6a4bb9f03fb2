"""Speech to text by a CTC head, over sounds of any length. N samples, T frames, V symbols.

```
sound ── pieces of 30 s, 2 s of their neighbours on both sides ── model ── log p (T, V) of the pieces, joined ── text
```
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.generate.decoding import evaluating
from anyformer.generate.paths import Symbol, TextScorer, beam_search, best_path, ctc_head
from anyformer.generate.timing import Word
from anyformer.hub.processors import WaveProcessor, assumed
from anyformer.media.sound import Sound, sound

PIECE, BESIDE = 30.0, 2.0  # seconds that are read at once; of each neighbour, read and left out
BONUS = 1.0  # for each word beside a language model, in nats


@dataclass(frozen=True)
class Spelt:
    """The text of a sound, as its frames spell it.

    Attributes:
        symbols: ids. words: with their times, in seconds. log_probability: mean of log p of the best symbol of a frame.
        seconds: the length of the sound.
    """

    text: str
    symbols: tuple[int, ...]
    words: tuple[Word, ...]
    log_probability: float
    seconds: float


@torch.inference_mode()
def spell(
    model: Any, audio: Any, beams: int = 1, lm: Any = None, lm_weight: float = 0.5, word_bonus: float = BONUS
) -> Spelt:
    """The text of a sound by a model with a CTC head.

    Args:
        model: with a tokenizer whose padding token is the blank.
        audio: a file, (samples, rate), or another form of `anyformer.media.sound`.
        beams: 1 reads the likeliest path; more search the likeliest text over all of its paths.
        lm: a decoder of text with its tokenizer, which scores whole words of the texts of a beam search.
        lm_weight: of its log p. word_bonus: for each word, beside it.

    Raises:
        ValueError: naming the argument, for a model without such a head, or options that exclude each other.
    """
    head, tokenizer = ctc_head(model), model.tokenizer
    if head is None or tokenizer is None:
        lacks = "a head of symbols for frames (CTC)" if head is None else "a tokenizer, which spells its symbols"
        raise ValueError(f"{model.page or type(model).__name__} lacks {lacks}")
    if lm is not None and beams < 2:
        raise ValueError(f"lm scores the texts of a beam search, and beams is {beams}; use beams=16")
    heard = sound(audio)
    with evaluating(model):
        log = scores(model, heard)
    path = best_path(log, head.blank)
    ids = [symbol.id for symbol in path]
    mean = float(log.amax(-1).mean()) if len(log) else 0.0
    if beams != 1:
        ends = word_end(tokenizer)
        scorer = None if lm is None else TextScorer(lm, tokenizer.decode, lm_weight, word_bonus)
        if scorer is not None and ends is None:
            raise ValueError("lm scores words, and the model's tokenizer has no token between words")
        ids, _ = beam_search(log.cpu(), head.blank, beams, scorer, ends)
        return Spelt(tokenizer.decode(ids), tuple(ids), (), mean, heard.seconds)
    each = heard.seconds / max(1, len(log))  # of a frame
    words = timed(path, tokenizer.decode, word_end(tokenizer), each)
    return Spelt(tokenizer.decode(ids), tuple(ids), tuple(words), mean, heard.seconds)


def word_end(tokenizer: Any) -> int | None:
    """The id of the token that is a space, or None."""
    return tokenizer.core.token_to_id(tokenizer.config.get("word_delimiter_token") or "|")


def timed(path: list[Symbol], decode: Callable[[list[int]], str], ends: int | None, each: float) -> list[Word]:
    """The words of a path with their times: from the first frame of the first letter to the last one of the last."""
    words: list[list[Symbol]] = [[]]
    for symbol in path:
        if symbol.id == ends:
            words.append([])
        else:
            words[-1].append(symbol)
    return [
        Word(decode([s.id for s in word]), word[0].first * each, (word[-1].last + 1) * each) for word in words if word
    ]


def scores(model: Any, heard: Sound) -> Tensor:
    """log p of the symbols in each frame of a sound, (T, V); none for a sound below one frame."""
    processor: Any = model.processor or assumed(model)
    like = next(model.parameters())
    if not isinstance(processor, WaveProcessor):  # a window of features, of a fixed length
        inputs = {name: value.to(like) for name, value in processor([heard]).items()}
        return model(**inputs).logits[0].float().log_softmax(-1)
    samples, front = processor.samples(heard), model.entrances()[0].front
    hop = front.least(2) - front.least(1)
    own, beside = (round(seconds * processor.rate / hop) * hop for seconds in (PIECE, BESIDE))
    pieces = []
    for first in range(0, len(samples), own):
        start = max(0, first - beside)
        piece = samples[start : first + own + beside]
        if len(piece) < front.least(1):
            continue
        log = model(input_values=torch.from_numpy(np.ascontiguousarray(piece))[None].to(like)).logits[0]
        skipped = (first - start) // hop
        last = None if first + own >= len(samples) else skipped + own // hop
        pieces.append(log[skipped:last].float().log_softmax(-1))
    return torch.cat(pieces) if pieces else torch.zeros(0, 1)
