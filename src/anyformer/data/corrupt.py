"""Input corruption for denoising objectives: BERT's masks, T5's spans, BART's noise.

Every function takes token ids and a NumPy generator, changes nothing in place, and draws only from the generator.
`generator(seed, number)` makes the one of example `number`, so that an example is always corrupted in the same way, and
in another way in the next epoch, where it has another number.

T tokens, L positions, S spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IGNORE = -100


def generator(seed: int, number: int) -> np.random.Generator:
    """The random numbers of example `number`: a counter-based generator (Philox), whose streams never meet."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, number]))


# ------------------------------------------------------------------------------------------------ BERT


@dataclass(frozen=True, eq=False)
class Masking:
    """Masked tokens (Devlin et al., 2018; arXiv:1810.04805): of the chosen ones 80 % become `mask_id`, 10 % another
    random token, 10 % stay.

    Args:
        mask_id: the id of [MASK].
        vocab: ids are below it.
        special: ids that are never chosen and never inserted: [CLS], [SEP], padding, [MASK] itself.
        rate: the share of tokens that is chosen.
        starts: (vocab,) bool, True for ids that begin a word: the tokens of a word are chosen together; None: each by
            itself.
    """

    mask_id: int
    vocab: int
    special: tuple[int, ...]
    rate: float = 0.15
    starts: np.ndarray | None = None

    def __post_init__(self) -> None:
        _share("rate", self.rate)
        if self.starts is not None and self.starts.shape != (self.vocab,):
            raise ValueError(f"starts must hold for each of {self.vocab} ids whether it begins a word")
        if len(self.ordinary) == 0:
            raise ValueError("every token is special; nothing can be hidden")

    @property
    def ordinary(self) -> np.ndarray:
        """The ids that can be hidden, and can replace a hidden one."""
        return np.setdiff1d(np.arange(self.vocab), (*self.special, self.mask_id))

    def __call__(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The corrupted input, and the labels: the token where one was chosen, else -100. (T,) -> (T,), (T,).

        Every token is chosen with probability `rate`; with whole words every word.
        """
        may = ~np.isin(ids, (*self.special, self.mask_id))
        words = np.arange(len(ids)) if self.starts is None else self._words(ids, may)
        chosen = (rng.random(len(ids)) < self.rate)[words] & may  # the draw of a word is that of its first number
        fate = rng.random(len(ids))
        others = self.ordinary[rng.integers(len(self.ordinary), size=len(ids))]
        read = np.where(chosen & (fate < 0.8), self.mask_id, ids)
        read = np.where(chosen & (fate >= 0.8) & (fate < 0.9), others, read)
        return read, np.where(chosen, ids, IGNORE)

    def _words(self, ids: np.ndarray, may: np.ndarray) -> np.ndarray:
        """The word number of each token; special tokens belong to no word."""
        assert self.starts is not None
        begins = self.starts[ids] | ~may
        begins[1:] |= ~may[:-1]
        return np.maximum(begins.cumsum() - 1, 0)


def word_starts(tokens: Sequence[str]) -> np.ndarray:
    """True for tokens that begin a word, by their spelling: not "##ing" (WordPiece); only "Ġthe" and "▁the" if any
    token of the vocabulary begins with these marks (byte-level BPE, Unigram). (V,) bool."""
    marked = [t.startswith(("Ġ", "▁", "Ċ")) for t in tokens]
    if any(marked):
        return np.array([m or not t[:1].isalnum() for m, t in zip(marked, tokens, strict=True)])
    return np.array([not t.startswith("##") for t in tokens])


@dataclass(frozen=True)
class Pair:
    """Two pieces of text and the label: 0 = the second one follows the first, 1 = it does not."""

    first: np.ndarray
    second: np.ndarray
    label: int

    def joined(self, cls: int, sep: int) -> tuple[np.ndarray, np.ndarray]:
        """[CLS] first [SEP] second [SEP], and the segments: 0 up to the first [SEP], 1 after it."""
        ids = np.concatenate(([cls], self.first, [sep], self.second, [sep]))
        types = np.repeat([0, 1], [len(self.first) + 2, len(self.second) + 1])
        return ids, types


def pair(here: np.ndarray, there: np.ndarray, rng: np.random.Generator) -> Pair:
    """Two pieces of text with L tokens together: in half of the cases the two parts of `here`, else its first part and
    the beginning of `there`, which is text from another document.

    Shapes: (L,), (L,). Raises: ValueError for fewer than 2 tokens, or two lengths.
    """
    if len(here) != len(there) or len(here) < 2:
        raise ValueError(f"a pair needs two windows of one length, at least 2 tokens; got {len(here)} and {len(there)}")
    cut, label = int(rng.integers(1, len(here))), int(rng.integers(2))
    second = there[: len(here) - cut] if label else here[cut:]
    return Pair(here[:cut], second, label if not np.array_equal(second, here[cut:]) else 0)  # it may be the same text


# -------------------------------------------------------------------------------------------------- T5


@dataclass(frozen=True)
class Spans:
    """Span corruption (Raffel et al., 2019; arXiv:1910.10683): sentinels replace spans, and the target holds them.

    ```
    tokens    thank you for inviting me to your party last week
    source    thank you <x> me to your party <y> week </s>
    target    <x> for inviting <y> last </s>
    ```
    Of T tokens round(T * density) are hidden, in round(hidden / mean) spans; hidden and kept tokens are both cut into
    that many spans at random; a kept span comes first, a hidden one last.

    Args:
        sentinels: ids in their order.
        end: id after source and target.
        density: the share of tokens that is hidden. `mean`: length of a span.
    """

    sentinels: tuple[int, ...]
    end: int
    density: float = 0.15
    mean: float = 3.0

    def __post_init__(self) -> None:
        _share("density", self.density)
        if not self.mean >= 1:
            raise ValueError(f"mean must be at least 1 token, got {self.mean}")

    def counts(self, tokens: int) -> tuple[int, int]:
        """The numbers of hidden tokens and of spans in a text of `tokens` tokens."""
        hidden = min(max(round(tokens * self.density), 1), tokens - 1)
        return hidden, min(max(round(hidden / self.mean), 1), tokens - hidden)

    def lengths(self, tokens: int) -> tuple[int, int]:
        """The lengths of source and target for a text of `tokens` tokens."""
        hidden, spans = self.counts(tokens)
        return tokens - hidden + spans + 1, hidden + spans + 1

    def room(self, source: int) -> int:
        """The most tokens of a text whose source has at most this length."""
        tokens = 2
        while self.lengths(tokens + 1)[0] <= source:
            tokens += 1
        return tokens

    def __call__(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Source and target. (T,) -> (L,), (L',).

        Raises:
            ValueError: for a single token, or more spans than there are sentinels.
        """
        if len(ids) < 2:
            raise ValueError(f"span corruption needs at least 2 tokens, got {len(ids)}")
        hidden, spans = self.counts(len(ids))
        if spans > len(self.sentinels):
            raise ValueError(
                f"{len(ids)} tokens have {spans} hidden spans, and there are {len(self.sentinels)} sentinels; use "
                "shorter texts or more sentinels"
            )
        kept, gone = _cut(len(ids) - hidden, spans, rng), _cut(hidden, spans, rng)
        ends = np.stack((kept, gone), 1).ravel().cumsum()  # kept, hidden, kept, hidden …
        pieces = np.split(ids, ends[:-1])
        marks = [np.array([s]) for s in self.sentinels[:spans]]
        source = [part for both in zip(pieces[::2], marks, strict=True) for part in both]
        target = [part for both in zip(marks, pieces[1::2], strict=True) for part in both]
        return np.concatenate((*source, [self.end])), np.concatenate((*target, [self.end]))


def _cut(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as a sum of `parts` positive numbers, uniformly drawn from all such sums."""
    ends = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(ends, prepend=0, append=total)


# ------------------------------------------------------------------------------------------------ BART


def infill(ids: np.ndarray, mask_id: int, rng: np.random.Generator, rate: float = 0.3, mean: float = 3.0) -> np.ndarray:
    """Text infilling (Lewis et al., 2019; arXiv:1910.13461): one mask replaces each span of Poisson length.

    Spans are drawn until round(T * rate) tokens are covered, the last one is cut to fit; a span of length 0 inserts a
    mask between two tokens. So the model must infer the lengths, too.
    """
    _share("rate", rate)
    if not mean > 0:
        raise ValueError(f"mean must be above 0 tokens, got {mean}")
    budget, lengths = round(len(ids) * rate), []
    while budget > 0:
        lengths.append(min(int(rng.poisson(mean)), budget))
        budget -= lengths[-1]
    kept = len(ids) - sum(lengths)
    before = np.sort(rng.integers(kept + 1, size=len(lengths)))  # kept tokens before each span
    out, at, used = [], 0, 0
    for first, length in zip(before, rng.permutation(lengths).astype(int), strict=True):
        out += [ids[at : at + first - used], np.array([mask_id])]
        at, used = at + first - used + length, first
    return np.concatenate((*out, ids[at:])).astype(ids.dtype)


def hide(ids: np.ndarray, mask_id: int, rng: np.random.Generator, rate: float = 0.15) -> np.ndarray:
    """Token masking: each token becomes the mask with probability `rate`. (T,) -> (T,)."""
    _share("rate", rate)
    return np.where(rng.random(len(ids)) < rate, mask_id, ids)


def delete(ids: np.ndarray, rng: np.random.Generator, rate: float = 0.15) -> np.ndarray:
    """Token deletion: each token is deleted with probability `rate`, without a mark. (T,) -> fewer."""
    _share("rate", rate)
    return ids[rng.random(len(ids)) >= rate]


def permute(ids: np.ndarray, stops: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Sentence permutation: sentences, which end with one of the ids `stops`, in random order. (T,) -> (T,)."""
    sentences = np.split(ids, np.flatnonzero(np.isin(ids, stops)) + 1)
    sentences = [s for s in sentences if len(s)]
    order = rng.permutation(len(sentences))
    return np.concatenate([sentences[i] for i in order]) if len(sentences) else ids.copy()


def rotate(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Document rotation: the text begins at a random token, and its former beginning follows its end. (T,) -> (T,)."""
    return np.roll(ids, -int(rng.integers(max(1, len(ids)))))


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {value}")
