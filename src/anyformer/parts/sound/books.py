"""Residual vector quantisation. B sounds, T frames, D width, Q books, V codes of a book, M frames in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from anyformer.core.flow import Flow
from anyformer.core.part import Part

DECAY = 0.99  # of the running sums of a book, a step
DEAD = 0.1  # a code in use less than this share of an even use moves
SAMPLES = 1 << 16  # frames of a process, the most, from which codes that move are taken


class Book(Part):
    """One table of codes. The nearest code of a vector x: argmin_v |x - table_v|^2.

    Buffers, as files store them: `table` (V, D); `counts` (V,) and `sums` (V, D), the running number and sum of the
    vectors nearest to each code; `ready` (1,). No gradient trains a table: it follows the vectors, see `Books.bound`.
    """

    table: Tensor
    counts: Tensor
    sums: Tensor
    ready: Tensor

    def __init__(self, dim: int, vocab: int):
        super().__init__()
        for name, shape in {"table": (vocab, dim), "counts": (vocab,), "sums": (vocab, dim), "ready": (1,)}.items():
            self.register_buffer(name, torch.zeros(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for tensor in (self.table, self.counts, self.sums):
            tensor.zero_()
        self.ready.fill_(1.0)

    def nearest(self, x: Tensor) -> Tensor:
        """Vectors (M, D) to codes (M,)."""
        far = x.pow(2).sum(1, keepdim=True) - 2 * x @ self.table.T + self.table.T.pow(2).sum(0, keepdim=True)
        return far.argmin(-1)

    def follow(self, found: Seen) -> None:
        """Moves the codes towards the vectors that they stood for (van den Oord et al., 2017; arXiv:1711.00937)."""
        if not bool(found.counts.sum() > 0):
            return  # no sound of the step had this book in use
        self.counts.lerp_(found.counts.to(self.counts), 1 - DECAY)
        self.sums.lerp_(found.sums.to(self.sums), 1 - DECAY)
        even = self.counts.sum() / len(self.counts)
        dead = self.counts < DEAD * even
        if bool(dead.any()):  # in all processes, or in none
            samples = found.every_sample()
            places = torch.linspace(0, len(samples) - 1, int(dead.sum()), device=dead.device).long()
            self.counts[dead] = even
            self.sums[dead] = samples[places].to(self.sums) * even
        self.table.copy_(self.sums / self.counts.clamp(min=1e-12)[:, None])


@dataclass
class Seen:
    """The use of a book since the last step: the number (V,) and sum (V, D) of the vectors of each code, and these
    vectors, (S, D), in their order, NaN at padding."""

    counts: Tensor
    sums: Tensor
    samples: Tensor

    def added(self, other: Seen | None) -> Seen:
        """The sum of two."""
        if other is None:
            return self
        samples = torch.cat((other.samples, self.samples))[:SAMPLES]
        return Seen(self.counts + other.counts, self.sums + other.sums, samples)

    def everywhere(self) -> Seen:
        """The numbers and sums of all processes of the run, the same in each, and its own vectors."""
        if _processes() > 1:
            distributed.all_reduce(self.counts)
            distributed.all_reduce(self.sums)
        return self

    def every_sample(self) -> Tensor:
        """The vectors of all processes, one process after another: in the order of the rows of the step."""
        own = self.samples[self.samples.isfinite().all(1)]
        if _processes() == 1:
            return own
        every: list[Any] = [None] * _processes()
        distributed.all_gather_object(every, own.cpu())
        return torch.cat(every).to(self.counts.device)


def _processes() -> int:
    there = distributed.is_available() and distributed.is_initialized()
    return int(distributed.get_world_size()) if there else 1


class Books(Part):
    """Frames as Q codes, each of what the books before left over (Zeghidour et al., 2021, "SoundStream";
    arXiv:2107.03312).

    ```
    r_1 = x,   code_q = nearest of r_q in book q,   r_{q+1} = r_q - table_q[code_q],   y = sum_q table_q[code_q]
    ```
    In training y has the gradient of x, and `commitment` * |r_q - table_q[code_q]|^2, the mean over all real frames (0
    in a sound without the book), summed over the books, is added to the loss. After each step (`bound`) the tables
    follow the vectors of the step, those of all processes: a table is the running mean of its vectors, and a code that
    is hardly used moves to one of them. The first step therefore fills new tables with vectors.

    Args:
        vocab: V. books: Q.
        commitment: weight of that loss.

    Shape: (B, T, D) -> y (B, T, D), codes (B, T, Q).
    """

    def __init__(self, dim: int, vocab: int = 1024, books: int = 8, commitment: float = 0.25):
        super().__init__()
        if vocab < 2 or books < 1 or commitment < 0:
            raise ValueError(
                f"Books: vocab is at least 2, books at least 1, commitment at least 0; got {vocab}, {books} and "
                f"{commitment}"
            )
        self.books: Any = nn.ModuleList(Book(dim, vocab) for _ in range(books))
        self.vocab, self.commitment = vocab, commitment
        self.seen: list[Seen | None] = [None] * books

    def forward(self, x: Tensor, flow: Flow, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The vectors that stand for `x`, and the codes.

        Args:
            used: (B,) the books in use of each sound, the first ones; None: all. The code of another one is 0.
        """
        keep = flow.keep_now(x.shape[1])
        whole, learns = keep is None and used is None, self.training and torch.is_grad_enabled()
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if keep is None else keep
        left, made, codes = x.detach(), torch.zeros_like(x), []
        loss = x.new_zeros(())
        for number, book in enumerate(self.books):
            here = real if used is None else real & (used[:, None] > number)
            code = book.nearest(left.reshape(-1, x.shape[-1])).view(x.shape[:2])
            code = code if whole else code.masked_fill(~here, 0)
            vector = book.table[code] if whole else book.table[code].masked_fill(~here[..., None], 0)
            if learns:
                error = (x - made - vector).square().mean(-1).masked_fill(~here, 0)  # (B, T)
                loss = loss + error.sum() / real.sum().clamp(min=1)
                self._note(number, left.flatten(0, 1).float(), code.flatten(), here.flatten())
            made, left = made + vector, left - vector
            codes.append(code)
        if learns:
            flow.add_aux("commitment", self.commitment * loss)
            made = x + (made - x).detach()
        return made, torch.stack(codes, -1)

    def vectors(self, codes: Tensor) -> Tensor:
        """The vectors of codes (B, T, q), of the first q books: (B, T, D)."""
        return torch.stack([book.table[code] for book, code in zip(self.books, codes.unbind(-1), strict=False)]).sum(0)

    def _note(self, number: int, x: Tensor, code: Tensor, here: Tensor) -> None:
        """Adds vectors (M, D) and their codes (M,), where `here` (M,), to what book `number` stood for."""
        real = here.to(x)
        counts = x.new_zeros(self.vocab).index_add_(0, code, real)
        sums = x.new_zeros(self.vocab, x.shape[1]).index_add_(0, code, x * real[:, None])
        samples = x.masked_fill(~here[:, None], float("nan"))[:SAMPLES]
        self.seen[number] = Seen(counts, sums, samples).added(self.seen[number])

    @torch.no_grad()
    def bound(self) -> None:
        """Moves the tables after a step of training; `train.fit` calls it."""
        for number, book in enumerate(self.books):
            if (seen := self.seen[number]) is not None:
                book.follow(seen.everywhere())
        self.seen = [None] * len(self.books)
