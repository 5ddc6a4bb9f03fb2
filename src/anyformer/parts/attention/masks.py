"""Masks: small named objects for the visible pairs, combined by `&`, `|`, `~`, made into a tensor as late as
possible.

`Window(255) & ~Window(3)` prints as itself, is stored with the recipe, and has a known reach.
B batch, T queries, S keys.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from anyformer.core.checks import readable
from anyformer.core.documents import counted
from anyformer.core.flow import Flow
from anyformer.core.shown import Shown
from anyformer.core.value import Value

CHUNK = 128  # queries per chunk of local attention
PAIRS = 1 << 27  # the largest mask that is made as a tensor, in pairs: 128 MB
FAR = 1 << 62  # 'any distance'
CALL = 1 << 14  # pairs that take as long as a call of attention does at least
LOOKED_AT = 1024  # tokens of the text on which a new model's mask is tested


class Mask(Shown, Value):
    """The visible pairs of queries and keys, by index in the sequence."""

    @abstractmethod
    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """True if the query at an index sees the key at an index. Shapes broadcast, e.g. (T, 1) and (S,) to
        (T, S)."""

    @abstractmethod
    def reach(self) -> tuple[int, int]:
        """The largest visible distance to the left and to the right; `FAR` if there is no
        limit."""

    def by_distance(self) -> bool:
        """True if it depends only on the distance of query and key. Then padding in front of a text changes nothing."""
        return True

    def misses(self, queries: range, keys: range) -> bool:
        """True if surely, without a look at the pairs, none of these queries sees any of these keys."""
        left, right = self.reach()
        return keys[-1] < queries[0] - left or keys[0] > queries[-1] + right

    def kept(self, queries: int, keys: int | None = None) -> float:
        """The visible share of all pairs: the cost of exact attention under this mask, full attention = 1."""
        keys = queries if keys is None else keys
        rows = (View(self, start, min(CHUNK, queries - start), 0, keys) for start in range(0, queries, CHUNK))
        return sum(int(view.tensor().sum()) for view in rows) / (queries * keys)

    def show(self, size: int = 12) -> str:
        """A drawing of the first `size` queries (rows) and keys: ■ visible, · hidden."""
        seen = View(self, 0, size, 0, size).tensor()[0, 0].tolist()
        return "\n".join(" ".join("■" if pair else "·" for pair in row) for row in seen)

    def __and__(self, other: Mask) -> Mask:
        return And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other)

    def __invert__(self) -> Mask:
        return Not(self)


def shape_of(query: Tensor, key: Tensor) -> torch.Size:
    """The shape that two tensors broadcast to. `torch.broadcast_shapes` imports sympy first, which takes 0.7 s."""
    return torch.broadcast_tensors(query, key)[0].shape


@dataclass(frozen=True)
class Full(Mask):
    """All pairs."""

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.ones((), dtype=torch.bool, device=key.device).expand(shape_of(query, key))

    def reach(self) -> tuple[int, int]:
        return FAR, FAR


@dataclass(frozen=True)
class Causal(Mask):
    """All keys up to the query: key <= query."""

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    def reach(self) -> tuple[int, int]:
        return FAR, 0


@dataclass(frozen=True)
class Window(Mask):
    """The nearest keys: at most `left` before and `right` after; itself always. A published sliding window of w
    tokens is `Window(w - 1)`."""

    left: int
    right: int = 0

    def __post_init__(self) -> None:
        if self.left < 0 or self.right < 0:
            raise ValueError(
                f"Window: left and right are distances, 0 or more; got left={self.left}, right={self.right} "
                "(a published window of w tokens, at least 1, is Window(w - 1): a token sees itself)"
            )

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return (key >= query - self.left) & (key <= query + self.right)

    def reach(self) -> tuple[int, int]:
        return self.left, self.right


@dataclass(frozen=True)
class And(Mask):
    """The pairs in both masks."""

    a: Mask
    b: Mask

    def by_distance(self) -> bool:
        return self.a.by_distance() and self.b.by_distance()

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return self.a.allowed(query, key) & self.b.allowed(query, key)

    def reach(self) -> tuple[int, int]:
        (al, ar), (bl, br) = self.a.reach(), self.b.reach()
        return min(al, bl), min(ar, br)

    def misses(self, queries: range, keys: range) -> bool:
        return self.a.misses(queries, keys) or self.b.misses(queries, keys)

    def __repr__(self) -> str:
        return f"({self.a!r} & {self.b!r})"


@dataclass(frozen=True)
class Or(Mask):
    """The pairs in either mask."""

    a: Mask
    b: Mask

    def by_distance(self) -> bool:
        return self.a.by_distance() and self.b.by_distance()

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return self.a.allowed(query, key) | self.b.allowed(query, key)

    def reach(self) -> tuple[int, int]:
        (al, ar), (bl, br) = self.a.reach(), self.b.reach()
        return max(al, bl), max(ar, br)

    def misses(self, queries: range, keys: range) -> bool:
        return self.a.misses(queries, keys) and self.b.misses(queries, keys)

    def __repr__(self) -> str:
        return f"({self.a!r} | {self.b!r})"


@dataclass(frozen=True)
class Not(Mask):
    """The pairs outside the other mask."""

    a: Mask

    def by_distance(self) -> bool:
        return self.a.by_distance()

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return ~self.a.allowed(query, key)

    def reach(self) -> tuple[int, int]:
        return FAR, FAR

    def __repr__(self) -> str:
        return f"~{self.a!r}"


CAUSAL, FULL = Causal(), Full()  # the masks of every pass


@dataclass(frozen=True)
class Packed:
    """The document of each token, and its position in it: (B, n) each."""

    ids: Tensor
    positions: Tensor

    def cut(self, start: int, stop: int) -> Packed:
        """The same for the tokens start … stop."""
        return Packed(self.ids[:, start:stop], self.positions[:, start:stop])


@dataclass(frozen=True)
class View:
    """A mask applied to one call: `count` queries from index `query`, `keys` keys from index `key`, the padding of
    those keys, and the documents of both: with them a mask uses the position in the document."""

    mask: Mask
    query: int
    count: int
    key: int
    keys: int
    keep: Tensor | None = None  # (B, S) False = padding
    device: torch.device | None = None
    mine: Packed | None = None  # documents of the queries
    theirs: Packed | None = None  # documents of the keys

    def rows(self, start: int, stop: int) -> View:
        """The same for the queries start … stop and only the keys that they can reach."""
        left, right = self.mask.reach()
        low = max(0, self.query + start - left - self.key)
        high = min(self.keys, self.query + stop + right - self.key)
        keep = None if self.keep is None else self.keep[:, low:high]
        mine = None if self.mine is None else self.mine.cut(start, stop)
        theirs = None if self.theirs is None else self.theirs.cut(low, high)
        count, keys = stop - start, max(0, high - low)
        return View(self.mask, self.query + start, count, self.key + low, keys, keep, self.device, mine, theirs)

    def queries(self, start: int, stop: int) -> Self:
        """The same for the queries start … stop, and all keys."""
        mine = None if self.mine is None else self.mine.cut(start, stop)
        return replace(self, query=self.query + start, count=stop - start, mine=mine)

    def columns(self, start: int, stop: int) -> View:
        """The same for the keys start … stop only."""
        keep = None if self.keep is None else self.keep[:, start:stop]
        theirs = None if self.theirs is None else self.theirs.cut(start, stop)
        count, keys = self.count, stop - start
        return View(self.mask, self.query, count, self.key + start, keys, keep, self.device, self.mine, theirs)

    def nothing(self) -> bool:
        """True if surely no pair is visible."""
        queries, keys = range(self.query, self.query + self.count), range(self.key, self.key + self.keys)
        misses = self.mask.misses if self.mine is None else partial(Mask.misses, self.mask)  # by the distance only
        return not queries or not keys or misses(queries, keys)

    def open(self) -> bool:
        """True if the length is a symbol (`torch.export`). Then no branch can depend on it."""
        return isinstance(self.keys, torch.SymInt)

    def plainly_causal(self) -> bool:
        """True for a lower triangle and nothing else: fused kernels need no tensor for it."""
        if self.mask != CAUSAL:
            window = self.causal_window()
            return window is not None and self.count <= window + 1
        return self.keep is None and self.mine is None and bool(self.count == self.keys and self.query == self.key)

    def causal_window(self) -> int | None:
        """The largest distance of a key, of a text under a causal window and nothing else; None for other views."""
        left = self.mask.reach()[0]
        plain = self.keep is None and self.mine is None and self.mask == CAUSAL & Window(left) and not self.open()
        return left if plain and self.count == self.keys and self.query == self.key else None

    def continues(self) -> bool:
        """True if the queries are the last tokens of a plain text, and there are keys before them."""
        plain = self.mask == CAUSAL and self.keep is None and self.mine is None and not self.open()
        return plain and self.count < self.keys and self.query + self.count == self.key + self.keys

    def everything(self) -> bool:
        """True if every query sees every key: no mask is needed."""
        left, right = self.mask.reach()
        plain = isinstance(self.mask, Full | Causal | Window) or self.mask == CAUSAL & Window(left)
        if self.keep is not None or self.mine is not None or not plain:
            return False
        if self.open():
            return (left, right) == (FAR, FAR)
        return self.query + self.count - 1 - self.key <= left and self.key + self.keys - 1 - self.query <= right

    def local(self) -> bool:
        """True if the keys in reach are far fewer than all. Then no tensor of all pairs should be made."""
        if self.open():
            return False
        left, right = self.mask.reach()
        return self.count > CHUNK and 2 * (left + right + CHUNK) < self.keys

    @property
    def chunk(self) -> int:
        """Queries at a time in local attention: under a wide window twice as many, which have most keys in common."""
        return 2 * CHUNK if 4 * CHUNK <= sum(self.mask.reach()) < FAR else CHUNK

    def long(self) -> bool:
        """True if there are enough queries to process them in chunks."""
        return not self.open() and self.count > CHUNK

    def heavy(self) -> bool:
        """True if there are too many pairs even for a mask of them."""
        return not self.open() and self.count * self.keys > PAIRS

    @property
    def cuts(self) -> list[list[tuple[int, bool]]]:
        """The documents of each row where attention within them, one after the other, computes less than half of all
        pairs: their lengths, and False for padding. Empty elsewhere, and where the lengths cannot be known."""
        return [] if self.mine is None or torch.compiler.is_compiling() else self._cuts

    @functools.cached_property
    def _cuts(self) -> list[list[tuple[int, bool]]]:
        ids, keep = None if self.mine is None else self.mine.ids, self.keep
        if ids is None or keep is None or self.theirs is not self.mine or ids.device.type != "cpu" or not readable(ids):
            return []
        if self.count != self.keys or self.local() or not torch.equal(keep, ids >= 0):
            return []
        runs = [torch.unique_consecutive(row, return_counts=True) for row in ids]
        found = [[(n, i >= 0) for i, n in zip(*(t.tolist() for t in run), strict=True)] for run in runs]
        needed = sum(n * n + CALL for row in found for n, real in row if real)
        return found if 2 * needed < len(ids) * self.count**2 else []

    def tensor(self) -> Tensor:
        """The mask as booleans, (1 or B, 1, T, S), True = visible."""
        if self.mine is not None and self.theirs is not None:
            mine, theirs = self.mine, self.theirs
            seen = self.mask.allowed(mine.positions[:, None, :, None], theirs.positions[:, None, None])  # (B, 1, T, S)
            seen = seen & (mine.ids[:, None, :, None] == theirs.ids[:, None, None])
        else:
            query = torch.arange(self.query, self.query + self.count, device=self.device)[:, None]  # (T, 1)
            key = torch.arange(self.key, self.key + self.keys, device=self.device)  # (S,)
            seen = self.mask.allowed(query, key)[None, None]  # (1, 1, T, S)
        return seen if self.keep is None else seen & self.keep[:, None, None, :]


def check_sees(mask: Mask) -> None:
    """Raises ValueError for a mask without a visible pair, usually because of a stray ~ or &."""
    if hides_everything(mask):
        raise ValueError(
            f"the mask {mask!r} hides every token from every token, itself included; Window(0) is the smallest mask "
            "that shows something, and None hides nothing. In a decoder the future is hidden from all masks"
        )


@functools.cache
def hides_everything(mask: Mask) -> bool:
    """True if no pair is visible in a text that shows every distance, period and block of the mask. False, too,
    if that would be too many pairs."""
    enough = 2 + 2 * math.prod(1 + abs(n) for n in _numbers(mask))
    if enough > LOOKED_AT:
        return False
    with _disable_current_modes():  # a pass of empty tensors (`train.memory`) calls this as well
        return not bool(View(mask, 0, enough, 0, enough, device=torch.device("cpu")).tensor().any())


def _numbers(mask: Mask) -> list[int]:
    values = [getattr(mask, f.name) for f in fields(mask)]  # type: ignore[arg-type]
    return [n for v in values for n in (_numbers(v) if isinstance(v, Mask) else [v if isinstance(v, int) else FAR])]


def view(flow: Flow, mask: Mask | None, count: int, keys: int, device: torch.device) -> View:
    """The visible pairs of self-attention in this pass: the part's mask, the skeleton's direction, the padding.

    The last of the `keys` keys is the newest token; a sliding state can have dropped older ones.
    """
    whole: Mask = CAUSAL if flow.causal else FULL
    if mask is not None:
        whole = CAUSAL & mask if flow.causal else mask
        if not torch.compiler.is_compiling():
            check_sees(whole)
    end = flow.first + count
    keep = None if flow.keep is None else flow.keep[:, end - keys : end]
    packed = None if flow.documents is None else Packed(flow.documents, flow.positions)
    mine, theirs = packed, packed
    if packed is None and flow.keep is not None and not whole.by_distance():  # texts begin at different indices
        padding = flow.keep
        texts = flow.once("texts", lambda: one_text_a_row(padding))
        mine, theirs = texts.cut(flow.first, end), texts.cut(end - keys, end)
    return View(whole, flow.first, count, end - keys, keys, keep, device, mine, theirs)


def one_text_a_row(keep: Tensor) -> Packed:
    """The tokens of padded rows (B, S), each row one document whose positions do not count the padding."""
    return Packed(torch.zeros_like(keep, dtype=torch.long), counted(keep))


def resolved(seen: View) -> tuple[View, Tensor | None]:
    """A view and its tensor, or None if fused kernels need no tensor."""
    plain = seen.everything() or seen.plainly_causal() or seen.local() or seen.heavy()
    plain = plain or (seen.continues() and torch.is_grad_enabled()) or bool(seen.cuts)
    return seen, None if plain else seen.tensor()
