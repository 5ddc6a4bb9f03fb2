"""Hidden spans of frames, and distractors among hidden frames, by the number of an example. T frames, K distractors."""

from __future__ import annotations

import numpy as np

from anyformer.data.labels import IGNORE

STARTS, SPAN = 0.065, 10  # share of frames at which a span starts, and its frames, as published for pre-training


def hidden_frames(frames: int, draw: np.random.Generator, starts: float = STARTS, span: int = SPAN) -> np.ndarray:
    """The hidden frames, (T,) bool: spans that begin anywhere in the sound, overlap, and end inside it.

    At least one span, and at most all but one frame: what is hidden is told from the rest.
    """
    hidden = np.zeros(frames, bool)
    if frames < 2:
        return hidden
    span = min(span, frames - 1)
    count = max(1, int(starts * frames + draw.random()))
    for start in draw.choice(frames - span + 1, min(count, frames - span + 1), replace=False):
        hidden[start : start + span] = True
    if hidden.all():
        hidden[draw.integers(frames)] = False
    return hidden


def distractors(hidden: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Other hidden frames for each hidden frame, (T, K), drawn with repetition; -100 where nothing is hidden, or only
    one frame."""
    found = np.full((len(hidden), count), IGNORE)
    places = np.flatnonzero(hidden)
    if len(places) > 1:
        drawn = draw.integers(len(places) - 1, size=(len(places), count))
        drawn += drawn >= np.arange(len(places))[:, None]  # not the frame itself
        found[places] = places[drawn]
    return found
