"""Batches made ahead of time by threads, in unchanged order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from anyformer.data.batches import Batch, Batches, Numbered


class Prefetch:
    """The batches of `batches`, made in advance by threads: `Prefetch(batches, workers=2)`.

    A batch is a function of its number, so threads and timing change nothing. Threads and not processes: reading,
    decoding images and tokenising release Python's lock, and nothing is copied between processes.

    ```python
    with Prefetch(batches, workers=2) as ahead:
        fit(model, ahead, …)
    ```
    Args:
        batches: number -> batch; called from several threads at once, so it must keep no state (a `Numbered` does).
        workers: threads.
        ahead: batches that are kept ready; one for each worker and one more by default.

    Raises:
        ValueError: for fewer than one worker or batch, or batches that keep state. An error in making a batch is
            raised by the call for that batch; later batches are still available.
    """

    def __init__(self, batches: Batches, workers: int = 1, ahead: int | None = None):
        if isinstance(batches, Numbered):
            raise ValueError(
                "an iterable of batches keeps a state, which threads cannot share; pass a function of the number"
            )
        self.ahead = workers + 1 if ahead is None else ahead
        if workers < 1 or self.ahead < 1:
            raise ValueError(f"workers and ahead must be at least 1, got {workers} and {self.ahead}")
        self.make: Callable[[int], Batch] = batches
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self.coming: dict[int, Future[Batch]] = {}

    def __call__(self, number: int) -> Batch:
        """Batch number `number`; those after it are begun."""
        wanted = range(number, number + self.ahead + 1)
        for old in self.coming.keys() - set(wanted):  # the run went back, or an error occurred before
            self.coming.pop(old).cancel()
        for i in wanted:
            if i not in self.coming:
                self.coming[i] = self.pool.submit(self.make, i)
        return self.coming.pop(number).result()

    def close(self) -> None:
        """Ends the threads: running batches are finished, waiting ones dropped. No call for batches can follow."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.coming = {}

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
