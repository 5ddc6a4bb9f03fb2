"""Batches by number: what makes a run that resumes see what it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

Batch = dict[str, Tensor]  # the model's inputs by name, and `labels`
Batches = Callable[[int], Batch]  # number -> batch, the same one whenever it is asked


class Numbered:
    """An iterable of batches as batches by number; it is begun again when it ends.

    A list, a DataLoader, anything that can be iterated more than once and gives the same batches each time. A run that
    resumes goes through those that it has used. What shuffles anew in each round is better written as a function of
    the number.
    """

    def __init__(self, batches: Iterable[Batch]):
        self.batches, self.next = batches, 0
        self.current: Iterator[Batch] = iter(batches)

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
                return batch
            self.current = iter(self.batches)
        raise ValueError(
            f"the batches ended after {self.next - 1}; give a list or a DataLoader, which can be begun again, "
            "or a function from the number to the batch"
        )
