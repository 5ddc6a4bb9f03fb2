"""The engine: a thread that writes the texts of all models, one for calls, and a fair queue in front of each."""

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
from anyformer.serve.prefixes import Prefixes, unshared


class Queue:
    """Jobs that wait, by client: each client's first one comes before any client's second."""

    def __init__(self) -> None:
        self._clients: dict[str, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(not job.cancelled for jobs in self._clients.values() for job in jobs)

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
    """The threads that compute. `submit` from any thread; answers come by `Job.emit`, in a thread of the engine.

    Texts are written by one thread, token by token. Calls (vectors, recordings) have another one, so that a long
    recording holds up no text.

    Args:
        models: by the names under which they are served.
        exact: each request decodes in a batch of its own (see `Batch`).

    Raises:
        ValueError: naming the model, for a prefix cache and a model that cannot share states.
    """

    def __init__(self, models: dict[str, Any], limits: Limits, exact: bool = False):
        self.models, self.limits, self.exact, self.metrics = models, limits, exact, Metrics()
        self.draining, self.prefixes = False, Prefixes(limits.prefix)
        for name, model in models.items() if limits.prefix else ():
            if why := unshared(model):
                raise ValueError(f"prefix: {name} cannot share beginnings of prompts: {why}; serve it without a cache")
        self._batches = {
            name: Batch(model, limits, exact, self.metrics, name, self.prefixes) for name, model in models.items()
        }
        self._queues = {name: Queue() for name in models}
        self._calls = Queue()
        self._work = threading.Condition()
        self._stopped = False
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in (self._write, self._call)]
        for model in models.values():
            model.eval()  # no thread changes a mode under another one

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads after their present steps; jobs that are left fail."""
        with self._work:
            self._stopped = self.draining = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join(timeout=60)

    def joins(self, name: str) -> bool:
        """True if the texts of different requests share a batch."""
        return self._batches[name].joins

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
            self._work.notify_all()

    def measure(self) -> str:
        """The metrics, in Prometheus's format."""
        with self._work:
            for name, batch in self._batches.items():
                self.metrics.set("running", batch.rows, model=name)
                self.metrics.set("waiting", len(self._queues[name]), model=name)
                self.metrics.set("state_bytes", batch.bytes(), model=name)
            self.metrics.set("prefix_bytes", self.prefixes.bytes)
        return self.metrics.text()

    @torch.inference_mode()
    def _write(self) -> None:
        """The loop of texts: a chunk of a prompt and a token of each text of each model, again and again."""
        while True:
            with self._work:
                begins = self._next()
                if self._stopped:
                    break
                if not (begins or self.running):
                    self._work.wait(timeout=1.0)
                    continue
            for batch, jobs in begins:
                batch.begin(jobs)
            for batch in self._batches.values():
                batch.step()
        error = Refused(503, "server_stopped", "the server was stopped")
        for batch in self._batches.values():
            batch.stop(error)
        for queue in self._queues.values():
            _fail(queue, error)

    @torch.inference_mode()
    def _call(self) -> None:
        """The loop of calls, one after another."""
        while True:
            with self._work:
                _overdue(self._calls)
                if self._stopped:
                    break
                if self._calls.peek() is None:
                    self._work.wait(timeout=1.0)
                    continue
                call = self._calls.take()
            assert isinstance(call, Call)
            try:
                call.emit(call.first, Made(call.work()))
            except Exception as error:
                call.emit(call.first, Failed(error))
        _fail(self._calls, Refused(503, "server_stopped", "the server was stopped"))

    def _next(self) -> list[tuple[Batch, list[Write]]]:
        """What can begin now."""
        begins = []
        for name, queue in self._queues.items():
            _overdue(queue)
            if jobs := self._batches[name].take(queue):
                begins.append((self._batches[name], jobs))
        return begins


def _overdue(queue: Queue) -> None:
    for job in queue.late():
        job.emit(job.first, Failed(TimeoutError()))


def _fail(queue: Queue, error: Exception) -> None:
    while queue.peek() is not None:
        job = queue.take()
        job.emit(job.first, Failed(error))
