"""kNN memory: keys and values beyond the segments' reach, found by a search of their keys.

B batch, T queries of this call, C queries of a chunk, S items of memory, H heads, K head width, R items that a search
returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.core.state import State
from anyformer.parts.attention.cache import Sliding
from anyformer.parts.attention.masks import FAR
from anyformer.parts.attention.scores import Score
from anyformer.parts.memory.segments import Chunk, Pass, Places, SegmentRecurrence, show, weigh


def nearest(q: Tensor, k: Tensor, seen: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` keys with the largest q . k for each query and head, by exhaustive search.

    Shapes: q (B, H, C, K), k (B, H, S, K), seen (1 or B, C, S) -> indices of keys, and a mask of the valid ones, each
    (B, H, C, R) with R = top.
    """
    scores = (q @ k.mT).masked_fill(~seen[:, None], float("-inf"))  # (B, H, C, S)
    if isinstance(k.shape[2], torch.SymInt) or k.shape[2] < top:
        scores = F.pad(scores, (0, top), value=float("-inf"))  # missing keys
    size, index = scores.topk(top, -1)
    return index, size > float("-inf")


class Memory(Sliding):
    """Keys and values of the present text and of texts before it: the state of `NearestMemory`, separate for each
    row and head.

    Args:
        capacity: items that can be found; new ones replace the oldest. None = any number.
        recent: tokens stored beside them, because segments still see them.

    Attributes:
        known: (B, n) mask of the items of earlier texts; False = padding.
        index: the search: None = exhaustive; or FAISS's name of an index, e.g. "Flat" (exact) or "HNSW32" (approximate,
            in much less than linear time): `pip install faiss-cpu`. Can be set at any time.
    """

    def __init__(
        self, batch: int, heads: int, head_dim: int, room: int, like: Tensor, capacity: int | None, recent: int
    ):
        super().__init__(batch, heads, head_dim, room, like, FAR if capacity is None else capacity + recent)
        self.least = recent
        self.known = torch.ones(batch, 0, dtype=torch.bool, device=like.device)
        self.index: str | None = None
        self._made: dict[tuple[int, int], Any] = {}  # FAISS's index for a row and a head

    def recent(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the last `count` tokens of the text, or of all if there are fewer."""
        start = self.length - min(count, self.dropped + self.length - self.known.shape[1])
        return self.k[:, :, start:], self.v[:, :, start:]

    def add(self, k: Tensor, v: Tensor) -> None:
        """Adds items, (B, H, T, K) each; the oldest ones beyond the capacity go."""
        dropped = self.dropped
        self.append(k.detach(), v.detach())
        if self.dropped != dropped:
            self._made.clear()

    def search(self, q: Tensor, top: int, seen: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """The `top` items with the largest q . k, among the visible ones from `start` on.

        Shapes: q (B, H, C, K), seen (1 or B, C, n) -> their indices (B, H, C, R), and a mask of the valid ones.
        """
        if self.index is None:
            index, there = nearest(q, self.k[:, :, start : start + seen.shape[2]], seen, top)
            return index + start, there
        return self._by_faiss(q, top, F.pad(seen, (start, self.length - start - seen.shape[2])))

    def evict(self, count: int) -> None:
        """Drops the `count` oldest items, except those that segments still see."""
        gone = max(0, min(count, self.length - self.least))
        remaining = self.memory[:, :, :, gone : self.length].clone()
        self.length, self.dropped = self.length - gone, self.dropped + gone
        if self.watched:
            self.memory = remaining
        else:
            self.memory[:, :, :, : self.length] = remaining
        self._made.clear()

    def tensors(self, keep: Tensor | None) -> dict[str, Tensor]:
        """The tensors of a file: k and v (B, H, S, K), keep (B, S); `keep` is that of the text."""
        if keep is None:
            keep = self.known.new_ones(len(self.known), self.dropped + self.length - self.known.shape[1])
        items = {"k": self.k, "v": self.v, "keep": torch.cat((self.known, keep), 1)[:, self.dropped :]}
        return {name: t.detach().cpu().contiguous() for name, t in items.items()}

    def fill(self, k: Tensor, v: Tensor, keep: Tensor) -> None:
        """Puts items of earlier texts into an empty memory.

        Raises:
            ValueError: if they have another number of heads or another width.
        """
        here, there = (self.k.shape[0], self.k.shape[1], self.k.shape[3]), (k.shape[0], k.shape[1], k.shape[3])
        if here != there:
            raise ValueError(f"memory of (rows, heads, width) {there} does not fit a layer of {here}")
        assert not self.length
        self.append(k.to(self.memory), v.to(self.memory))
        self.known = keep.to(self.known.device)

    def reorder(self, index: Tensor) -> None:
        super().reorder(index)
        self.known = self.known[index]
        self._made.clear()

    def returns_to(self, length: int) -> bool:
        return super().returns_to(length + self.known.shape[1])

    @property
    def joins(self) -> bool:
        return False  # items are counted for all rows at once

    def trim(self, length: int) -> None:
        super().trim(length + self.known.shape[1])
        self._made.clear()

    def _by_faiss(self, q: Tensor, top: int, seen: Tensor) -> tuple[Tensor, Tensor]:
        faiss = _faiss()
        B, H, C, _ = q.shape
        index = torch.full((B, H, C, top), -1)
        words = {"HNSW": faiss.SearchParametersHNSW, "IVF": faiss.SearchParametersIVF}
        limits = next((kind for word, kind in words.items() if word in str(self.index)), faiss.SearchParameters)
        for b in range(B):
            kinds, kind = seen[b % len(seen)].unique(dim=0, return_inverse=True)  # queries of one segment see the same
            for n, row in enumerate(kinds.cpu().numpy()):
                mine = (kind == n).nonzero()[:, 0]
                bits = np.packbits(row, bitorder="little")
                among = limits(sel=faiss.IDSelectorBitmap(bits))
                for h in range(H):
                    asked = q[b, h, mine].detach().float().cpu().contiguous().numpy()
                    _, neighbours = self._index(faiss, b, h).search(asked, top, params=among)
                    index[b, h, mine.cpu()] = torch.from_numpy(neighbours)
        index = index.to(q.device)
        return index.clamp(min=0), index >= 0

    def _index(self, faiss: Any, row: int, head: int) -> Any:
        """FAISS's index with all items: it is filled on use."""
        if (row, head) not in self._made:
            width = self.memory.shape[4]
            self._made[row, head] = faiss.index_factory(width, self.index, faiss.METRIC_INNER_PRODUCT)
        made = self._made[row, head]
        if made.ntotal < self.length:
            new = self.k[row, head, made.ntotal :].detach().float().cpu().contiguous().numpy()
            if not made.is_trained:
                made.train(new)
            made.add(new)
        return made


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "memory.index is an index of FAISS, which is not installed: pip install faiss-cpu, or leave memory.index "
            "None"
        ) from None
    return faiss


class NearestMemory(SegmentRecurrence):
    """Segment recurrence that also looks up old keys and values by their nearness to the query (Memorizing
    Transformer: Wu et al., 2022; arXiv:2203.08913).

    ```
    ┌─ all that lies before, up to `capacity` items ─┐[ memory, M tokens ][ segment, L ]
    └──────── the R with the largest q . k ──────────┘└──────────── q ────────┘
                       │ softmax over R                        │ softmax
                       └── y = s y_found + (1 - s) y_near ─────┘          s = sigmoid(gate) of each head
    ```
    Nothing found: y = y_near. Found items get no gradient. Every row, every document and every head has its own
    memory. With `gate` false there is one softmax over both (LongLLaMA: Tworkowski et al., 2023;
    arXiv:2307.03170). The paper adds each segment to its memory at once, so with M > 0 the last M tokens count
    twice; here they are added when the recurrence no longer sees them. Positions affect the near tokens only.

    In training a row is its own memory. In a state the memory continues, can be searched by FAISS, saved and loaded:
    see `Memory`, `save_memory`, `load_memory`.

    Takes the options of `SegmentRecurrence` and these:

    Args:
        top: R. `capacity`: as in `Memory`. `gate`: as above.
        norm: of q and k; it keeps keys of all ages at one length, and the paper has one.

    Shape: (B, T, D) -> same. State: a `Memory`, (B, H, capacity + M + L - 1, K) twice.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        segment: int = 128,
        memory: int = 128,
        top: int = 32,
        capacity: int | None = None,
        gate: bool = True,
        bias: bool = True,
        out_bias: bool | None = None,
        norm: Recipe[Norm] | None = None,
        scale: float | None = None,
        scores: Sequence[Recipe[Score]] = (),
        dropout: float = 0.0,
    ):
        super().__init__(dim, heads, head_dim, segment, memory, bias, out_bias, norm, scale, scores, dropout)
        if top < 1 or (capacity is not None and capacity < 1):
            raise ValueError(f"NearestMemory: top and capacity must be at least 1; got top={top}, capacity={capacity}")
        self.top, self.capacity = top, capacity
        self.gate = nn.Parameter(torch.zeros(heads)) if gate else None

    def reset_parameters(self) -> None:
        if self.gate is not None:
            nn.init.zeros_(self.gate)

    def _call(self, x: Tensor, flow: Flow) -> Pass:
        call = super()._call(x, flow)
        if call.slot is not None:
            call.slot.add(*(t[:, :, call.at.past :] for t in call.held))
        return call

    def _read(self, call: Pass, chunk: Chunk) -> Tensor:
        sources = self._sources(call, chunk)
        k, v, there = self._found(call, chunk)  # (B, H, C, R, K), the same, (B, H, C, R)
        asked = call.queries(chunk.rows.start, chunk.rows.stop)
        plain = asked if call.q is call.asked else call.q[:, :, chunk.rows]
        scores = (k @ plain[..., None])[..., 0] * self.sharpness  # (B, H, C, R)
        scores = scores.masked_fill(~there, torch.finfo(scores.dtype).min)
        R = scores.shape[3]
        if self.gate is None:
            both = weigh(asked, sources, self.sharpness, call.cap, scores)
            far, near = both[..., :R], both[..., R:]
        else:
            any_found = there.any(-1, keepdim=True)  # (B, H, C, 1)
            share = self.gate.sigmoid()[:, None, None] * any_found
            far = share * scores.softmax(-1)
            near = (1 - share) * weigh(asked, sources, self.sharpness, call.cap)
        if call.shown is not None:
            show(call.shown, chunk, sources, near)
        far, near = (F.dropout(w, self.dropout, self.training) for w in (far * there, near))
        return near @ torch.cat([s.v for s in sources], 2) + (far[..., None, :] @ v)[..., 0, :]

    def _found(self, call: Pass, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values that the search returns for each query of a chunk, and a mask of the valid ones."""
        slot, at = call.slot, call.at
        k, v = (t.detach() for t in call.held) if slot is None else (slot.k, slot.v)  # (B, H, S, K)
        zero = at.first + call.x.shape[1] - k.shape[2]  # index of the first item; below 0: from texts before
        start, stop = self._stretch(chunk, at, zero, k.shape[2])
        seen = self._visible(call, chunk, zero + start, zero + stop)
        q = call.q[:, :, chunk.rows].detach()
        if slot is None:
            index, there = nearest(q, k[:, :, start:stop], seen, self.top)
            index = index + start
        else:
            index, there = slot.search(q, self.top, seen, start)
        index = index.masked_fill(~there, 0)
        flat = index.flatten(2)[..., None].expand(-1, -1, -1, self.head_dim)  # (B, H, C R, K)
        k, v = (t.gather(2, flat).unflatten(2, index.shape[2:]) for t in (k, v))
        return k, v, there

    def _stretch(self, chunk: Chunk, at: Places, zero: int, count: int) -> tuple[int, int]:
        """The range start … stop of items that these queries can find; `zero` is the index of the first one."""
        if isinstance(count, torch.SymInt):
            return 0, count
        first, last = at.first + chunk.rows.start, at.first + chunk.rows.stop  # segments begin after these
        oldest = zero if self.capacity is None else first - self.segment + 1 - self.memory - self.capacity
        start = min(count, max(0, oldest - zero))
        return start, max(start, min(count, last - self.memory - zero))

    def _visible(self, call: Pass, chunk: Chunk, first: int, last: int) -> Tensor:
        """True for the items with the indices first … last that a query of a chunk can find, (1 or B, C, n)."""
        key = torch.arange(first, last, device=call.x.device)
        newest = chunk.base[..., None] - self.memory  # (1 or B, C, 1): segments still see the rest
        seen = (key < newest) & ((key >= chunk.begin[..., None]) | (key < 0))  # (1 or B, C, n)
        if self.capacity is not None:
            seen = seen & (key >= newest - self.capacity)
        keep = call.flow.keep
        before = 0 if call.slot is None else call.slot.known.shape[1]
        if before:
            now = call.slot.known.new_ones(len(call.x), call.at.first + call.at.count) if keep is None else keep
            keep = torch.cat((call.slot.known, now), 1)
        return seen if keep is None else seen & keep[:, None, before + first : before + last]

    def _end(self, call: Pass) -> None:
        """Nothing: the memory already holds this call."""

    def start(self, batch: int, length: int, like: Tensor) -> Memory:
        return Memory(batch, self.heads, self.head_dim, length, like, self.capacity, self.reach)


def memories(model: nn.Module, state: State) -> dict[str, Memory]:
    """The searched memories of a state, by the path of their layer.

    Raises:
        ValueError: if the model has none.
    """
    by_path = {name: state.slots[m] for name, m in model.named_modules() if isinstance(m, NearestMemory)}
    if not by_path:
        raise ValueError("no layer of this model is a NearestMemory; `anyformer inspect` shows its layers")
    return by_path  # type: ignore[return-value]


def save_memory(model: nn.Module, state: State, path: str | Path) -> None:
    """Writes the items of a state's searched memories, tokens of its last segments included, to a safetensors
    file.

    ```python
    state = model.start(1)
    model(book, state=state)                    # in pieces, if it is long
    save_memory(model, state, "book.safetensors")
    state = load_memory(model, "book.safetensors")
    model.generate(…)                           # or model(ids, state=state): a new text, which can use them
    ```
    """
    tensors = {
        f"{name}.{kind}": t for name, m in memories(model, state).items() for kind, t in m.tensors(state.keep).items()
    }
    path, beside = Path(path), Path(f"{path}.part")
    save_file(tensors, beside)
    beside.replace(path)  # an error before this keeps the old file


def load_memory(model: Any, path: str | Path, index: str | None = None) -> State:
    """A new state, with the file's number of rows and the items of its searched memories.

    Args:
        index: the search, as in `Memory`.

    Raises:
        ValueError: if `save_memory` did not write the file, or for a model with other layers.
    """
    tensors = load_file(path)
    rows = {len(t) for t in tensors.values()}
    if len(rows) != 1:
        raise ValueError(f"{path} holds no memory: its tensors have {sorted(rows)} rows")
    state = model.start(rows.pop())
    by_path = memories(model, state)
    wanted = {f"{name}.{kind}" for name in by_path for kind in ("k", "v", "keep")}
    if strange := sorted(wanted ^ tensors.keys()):
        raise ValueError(f"{path} is the memory of another model: {strange[0]!r} exists on one side only")
    for name, memory in by_path.items():
        memory.fill(*(tensors[f"{name}.{kind}"] for kind in ("k", "v", "keep")))
        memory.index = index
    return state
