"""Sentences whose verb follows its subject at several distances, for heads that read the subject of a verb.

B batch, T positions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BEGINNINGS = ("", "Now ", "Today ", "We know that ", "In the end ", "As far as we know ")
NOUNS = ("key", "door", "window", "cabinet", "road", "house", "book", "table", "car", "tree", "boat", "picture")
BETWEEN = ("", "near the {}", "behind the {}", "to the old {}", "in front of the {}", "from the other side of the {}")
VERBS = (("is", "are"), ("was", "were"))  # of one, of several
ENDS = (" here.", " there.", " old.", " new.")
DRAWN, MOST = 600, 48  # sentences that are drawn; those of one length that are kept


@dataclass(frozen=True)
class Agreeing:
    """Sentences with equally many tokens.

    Args:
        ids: (B, T). verb: (B,) the place of the verb's first token. subject: (B, T) True at the tokens of its subject.
        texts: the sentences.
    """

    ids: Tensor
    verb: Tensor
    subject: Tensor
    texts: tuple[str, ...]


def agreeing(tokenizer: Any, seed: int = 0, longest: int | None = None) -> Agreeing | None:
    """English sentences whose verb has to agree with a noun that is not the nearest one (Linzen et al., 2016,
    arXiv:1611.01368): "Today the keys to the old cabinet are here." No parser is needed, because the places of subject
    and verb are known.

    Between the two stand no words, or some with a noun of the other number; other words stand before. So the distance
    and the place of the subject differ, and neither a fixed distance nor the first position is the subject.

    Args:
        tokenizer: of the model. seed: of the draw. longest: the most tokens of a sentence; None: any number.

    Returns:
        The sentences of that length in tokens which most of them have; None if there are not even 8 with two distances,
        or if the tokenizer does not know the words.
    """
    rng, groups = random.Random(seed), dict[int, dict[str, tuple[list[int], int, list[bool]]]]()
    for _ in range(DRAWN):
        text, subject, verb = _sentence(rng)
        made = tokenizer.core.encode(text)
        if len(made.ids) > (longest or len(made.ids)) or tokenizer.role_id("unk_token") in made.ids:
            continue
        there = [a < subject[1] and b > subject[0] for a, b in made.offsets]
        at = next((i for i, (a, b) in enumerate(made.offsets) if a < verb[1] and b > verb[0]), 0)
        if at and any(there):
            groups.setdefault(len(made.ids), {})[text] = (made.ids, at, there)
    chosen = dict(list(max(groups.values(), key=len, default={}).items())[:MOST])
    if len(chosen) < 8 or len({at - there.index(True) for _, at, there in chosen.values()}) < 2:
        return None
    ids, verbs, subjects = (torch.tensor(each) for each in zip(*chosen.values(), strict=True))
    return Agreeing(ids, verbs, subjects, tuple(chosen))


def _sentence(rng: random.Random) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """One sentence, and where its subject and its verb begin and end, in characters."""
    noun, other = rng.sample(NOUNS, 2)
    several = rng.random() < 0.5
    subject, other = (noun + "s", other) if several else (noun, other + "s")
    text = f"{rng.choice(BEGINNINGS)}the "
    text = text[0].upper() + text[1:]
    first = len(text), len(text) + len(subject)
    between = rng.choice(BETWEEN).format(other)
    text += f"{subject} {between}{' ' * bool(between)}"
    verb = rng.choice(VERBS)[several]
    return f"{text}{verb}{rng.choice(ENDS)}", first, (len(text), len(text) + len(verb))
