"""The engine: one thread that computes for all models, and a fair queue in front of each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from anyformer.serve.batch import Batch
from anyformer.serve.jobs import Call, Failed, Job, Made, Refused, Write
from anyformer.serve.limits import Limits
from anyformer.serve.metrics import Metrics


class Queue:
    """Jobs that wait, by client: each client's first one comes before any client's second."""

    def __init__(self) -> None:
        self._clients: dict[str, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def put(self, job: Job) -> None:
        self._clients.setdefault(job.client, deque()).append(job)

    def peek(self) -> Job | None:
        """The next job, without those that nobody waits for."""
        for client, jobs in list(self._clients.items()):
            while jobs and jobs[0].cancelled:
                jobs.popleft()
            if jobs:
                return jobs[0]
            del self._clients[client]
        return None

    def take(self) -> Job:
        """Takes out what `peek` gave; its client goes to the end."""
        client = next(iter(self._clients))
        jobs = self._clients.pop(client)
        job = jobs.popleft()
        if jobs:
            self._clients[client] = jobs
        return job

    def late(self) -> list[Job]:
        """Takes out the jobs whose time is over."""
        found = [job for jobs in self._clients.values() for job in jobs if job.late]
        for job in found:
            self._clients[job.client].remove(job)
        return found


class Engine:
    """The thread that computes. `submit` from any thread; answers come by `Job.emit`, in the engine's thread.

    Args:
        models: by the names under which they are served.
        exact: each request decodes in a batch of its own (see `Batch`).
    """

    def __init__(self, models: dict[str, Any], limits: Limits, exact: bool = False):
        self.models, self.limits, self.exact, self.metrics = models, limits, exact, Metrics()
        self.draining = False
        self._batches = {name: Batch(model, limits, exact, self.metrics, name) for name, model in models.items()}
        self._queues = {name: Queue() for name in models}
        self._calls = Queue()
        self._work = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="anyformer-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its present step; jobs that are left fail."""
        with self._work:
            self._stopped = self.draining = True
            self._work.notify()
        self._thread.join(timeout=60)

    def joins(self, name: str) -> bool:
        """True if the texts of different requests share a batch."""
        return not self.exact and self.models[name].start(1, 2).joins

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values()) + len(self._calls)

    @property
    def running(self) -> int:
        return sum(batch.rows for batch in self._batches.values())

    def submit(self, name: str, jobs: Sequence[Job]) -> None:
        """Puts the jobs of one request into the queue, all or none.

        Raises:
            Refused: if the server ends, or the queue is full.
        """
        with self._work:
            if self.draining:
                raise Refused(503, "server_draining", "the server is being stopped; try another one", 5)
            if self.waiting + len(jobs) > self.limits.waiting:
                text = f"{self.waiting} texts wait already, at most {self.limits.waiting} may; try again later"
                raise Refused(429, "queue_full", text, 2)
            for job in jobs:
                (self._queues[name] if isinstance(job, Write) else self._calls).put(job)
            self._work.notify()

    def measure(self) -> str:
        """The metrics, in Prometheus's format."""
        with self._work:
            for name, batch in self._batches.items():
                self.metrics.set("running", batch.rows, model=name)
                self.metrics.set("waiting", len(self._queues[name]), model=name)
                self.metrics.set("state_bytes", batch.bytes(), model=name)
        return self.metrics.text()

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._work:
                calls, begins = self._next()
                if self._stopped:
                    break
                if not (calls or begins or self.running):
                    self._work.wait(timeout=1.0)
                    continue
            for batch, write in begins:
                batch.begin(write)
            for call in calls:
                _called(call)
            for batch in self._batches.values():
                batch.step()
        error = Refused(503, "server_stopped", "the server was stopped")
        for batch in self._batches.values():
            batch.stop(error)
        for queue in (*self._queues.values(), self._calls):
            while queue.peek() is not None:
                job = queue.take()
                job.emit(getattr(job, "first", 0), Failed(error))

    def _next(self) -> tuple[list[Call], list[tuple[Batch, Write]]]:
        """What can begin now: at most one call, and one prompt a model."""
        for queue in (*self._queues.values(), self._calls):
            for job in queue.late():
                job.emit(getattr(job, "first", 0), Failed(TimeoutError()))
        calls = [
            job for job in ([self._calls.take()] if self._calls.peek() is not None else []) if isinstance(job, Call)
        ]
        begins = []
        for name, queue in self._queues.items():
            write = queue.peek()
            if isinstance(write, Write) and self._batches[name].fits(write):
                queue.take()
                begins.append((self._batches[name], write))
        return calls, begins


def _called(call: Call) -> None:
    if call.cancelled:
        return
    try:
        call.emit(call.first, Made(call.work()))
    except Exception as error:
        call.emit(call.first, Failed(error))
