"""Batches by number, so that a resumed run reads the same batches as an uninterrupted one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

Batch = dict[str, Tensor]  # the model's inputs by name, and `labels`
Batches = Callable[[int], Batch]  # number -> batch, always the same one


def checksum(batch: Batch) -> int:
    """The CRC-32 of a batch: equal for equal batches."""
    crc = 0
    for name in sorted(batch):
        value = batch[name].detach().cpu().contiguous().reshape(-1)
        crc = zlib.crc32(value.view(torch.uint8).numpy().tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def filled(rows: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of ids, filled up on the right with `pad`, (B, T), and 1 where there is a token, (B, T)."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(width) < lengths[:, None]).long()


class Numbered:
    """An iterable of batches as batches by number; it restarts when it ends.

    A list, a DataLoader, anything that can be iterated more than once and gives the same batches each time. A resumed
    run iterates over the batches that it has used, and is refused if they differ: data that is reshuffled in each round
    should be a function of the number.
    """

    def __init__(self, batches: Iterable[Batch]):
        self.batches, self.next = batches, 0
        self.current: Iterator[Batch] = iter(batches)
        self.first: Batch = {}
        self.last: Batch = {}

    def __call__(self, number: int) -> Batch:
        """Batch number `number`, counted through all rounds.

        Raises:
            ValueError: if there are no more batches.
        """
        if number < self.next:
            self.current, self.next = iter(self.batches), 0
        while self.next < number:
            self._advance()
        return self._advance()

    def _advance(self) -> Batch:
        self.next += 1
        for _ in range(2):
            for batch in self.current:
                self.first, self.last = self.first or batch, batch
                return batch
            self.current = iter(self.batches)
        raise self._ended()

    def sums(self) -> list[int]:
        """Checksums of the first batch and of the last one that was used."""
        return [checksum(batch) for batch in (self.first, self.last)]

    def go_on(self, number: int, sums: list[int]) -> None:
        """Skips the batches before `number`, those that a run has used.

        Raises:
            ValueError: if their checksums differ from those that the run wrote.
        """
        self(number - 1)
        if self.sums() != sums:
            raise ValueError(
                "the order of the batches has changed since the run began (a DataLoader that shuffles?), so the run "
                "cannot resume. Pass a function from the number to the batch, or a list; or start a new run"
            )

    def _ended(self) -> ValueError:
        return ValueError(
            f"the batches ended after {self.next - 1}; pass a list or a DataLoader, which can restart, or a function "
            "from the number to the batch"
        )
