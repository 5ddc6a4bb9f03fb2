"""The task ctc: sounds with what is said in them. N samples, U symbols."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.data.speech import word_errors
from anyformer.data.store import Example
from anyformer.generate.paths import ctc_head, greedy
from anyformer.hub.processors import CodecProcessor, SoundProcessor, WaveProcessor
from anyformer.media.sound import length, sound
from anyformer.train.objectives import IGNORE
from anyformer.train.sound_objectives import frames_needed
from anyformer.train.tasks.base import Task

UNIT = "wrong characters a character"
TOLD = 8  # letters that an error names


@dataclass
class ErrorRate:
    """Edits a symbol of the true texts: insertions, deletions and replacements, counted over all of them."""

    wrong: int = 0
    count: int = 0

    def add(self, found: Sequence[str], expected: Sequence[str]) -> None:
        """Counts one text: its characters, or its words."""
        self.wrong += word_errors(found, expected)
        self.count += len(expected)

    @property
    def value(self) -> float:
        """The share; above 1 if more is inserted than there is."""
        return self.wrong / max(1, self.count)


@dataclass(frozen=True, eq=False)
class SpeechTask(Task):
    """The task ctc, measured by the character error rate of the likeliest path.

    Attributes:
        spelling: of symbols. blank: of the head. texts: learned and held-out ones, as symbols.
    """

    spelling: Callable[[Sequence[int]], str] = field(default=str)
    blank: int = 0
    texts: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]] = ((), ())

    def measure(self, model: Any, batch: int) -> float:
        return self.errors(model, batch)[0].value

    @torch.no_grad()
    def errors(self, model: Any, batch: int) -> tuple[ErrorRate, ErrorRate]:
        """The errors in characters and in words."""
        device, rates = next(model.parameters()).device, (ErrorRate(), ErrorRate())
        for arrays in self.held_out(batch):
            inputs = {name: value.to(device) for name, value in arrays.items() if name != "labels"}
            output = model(**inputs)
            read = greedy(output.logits, output.keep, self.blank)
            for ids, labels in zip(read, arrays["labels"], strict=True):
                found, expected = self.spelling(ids), self.spelling(labels[labels != IGNORE].tolist())
                rates[0].add(list(found), list(expected))
                rates[1].add(found.split(), expected.split())
        return rates

    def baseline(self, batch: int) -> float:
        """The character error rate of the most frequent training text, whatever is said."""
        rate, (common, _) = ErrorRate(), Counter(self.texts[0]).most_common(1)[0]
        for text in self.texts[1]:
            rate.add(list(self.spelling(common)), list(self.spelling(text)))
        return rate.value


def labelled(model: Any, path: Path, text: str) -> np.ndarray:
    """The symbols of a text, (U,), for a sound that is long enough for them.

    Raises:
        ValueError: naming the file, for a letter without a symbol, a text without any, or one that needs more frames
            than the sound has.
    """
    t, head = model.tokenizer, ctc_head(model)
    assert head is not None
    ids = t.encode(" ".join(text.split()), special=False)
    unknown = t.role_id("unk_token")
    if unknown is not None and unknown in ids:
        known = {token for token in t.core.get_vocab() if len(token) == 1}
        strange = sorted({letter for letter in text if letter.strip() and letter not in known})[:TOLD]
        raise ValueError(
            f"{path}: the text has letters that no symbol of the model spells: {' '.join(map(repr, strange))}; write "
            "it in its letters, or train a new model, whose symbols are those of its texts"
        )
    if head.blank in ids or not ids:
        problem = "holds the token of the blank, which stands for nothing" if ids else "has no letters"
        raise ValueError(f"{path}: the text {text!r:.60} {problem}")
    need, there = int(frames_needed(torch.tensor([ids]))), frames(model, path)
    if need > there:
        raise ValueError(
            f"{path}: {len(ids)} symbols need at least {need} frames, one each and one between two equal ones, and the "
            f"sound has {max(0, there)}; is it cut off?"
        )
    return np.array(ids)


def frames(model: Any, path: Path) -> int:
    """The frames that a model makes of a sound.

    Raises:
        ValueError: for a sound longer than a model of features reads at once.
    """
    processor, front = model.processor, model.entrances()[0].front
    count, rate = length(path)
    if isinstance(processor, SoundProcessor):
        if count > processor.window * rate:
            raise ValueError(f"{path} has {count / rate:.1f} seconds, and the model reads {processor.window} at once")
        return int(front.context)
    return int(front.frames(count * processor.rate // rate))


def heard(model: Any, path: Path) -> Example:
    """The inputs of a model for one sound."""
    if isinstance(model.processor, WaveProcessor | CodecProcessor):
        return {"input_values": model.processor.samples(str(path))}
    return {"input_features": model.processor([sound(str(path))])["input_features"][0].numpy()}


def check(model: Any) -> int:
    """The blank of the model's head.

    Raises:
        ValueError: for a model without such a head, or whose tokenizer has another token for it.
    """
    head, t = ctc_head(model), model.tokenizer
    if head is None:
        raise ValueError("the task ctc needs a head of symbols for frames; build the model with it: task=ctc")
    if t is None or t.pad_id != head.blank:
        has = "no tokenizer" if t is None else f"a tokenizer whose padding token has the id {t.pad_id}"
        raise ValueError(f"the blank of the model's head is {head.blank}, and it has {has}; they are one")
    return head.blank


def texts(parts: Sequence[Any]) -> Iterator[tuple[int, ...]]:
    """The symbols of all examples of some parts of a store."""
    for part in parts:
        for place in part.places.of(np.arange(part.places.size)).tolist():
            yield tuple(part.store.fields["labels"][place].tolist())
