"""Questions and answers for a model that finds passages (RAG): retriever and generator learn together.

The passages of a batch are found by the model as it is at that step; the answers' likelihood alone says which were
right. With an encoder of passages in the model, all passages are embedded again every `refresh` steps; in between,
those that were found are scored by the encoder as it is. B questions, K passages of each.

The vectors of the last refresh are kept in the run, so that a run that goes on is the one that was not interrupted.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from anyformer.data import corpus as corpora
from anyformer.data.batches import Batch, filled
from anyformer.data.order import shuffled
from anyformer.hub.formats.guard import atomic_write
from anyformer.hub.text.reading import reading
from anyformer.know.reader import Passages, Reader, encoder_of
from anyformer.train import objectives
from anyformer.train.objectives import IGNORE
from anyformer.train.options import RunOptions, TrainOptions
from anyformer.train.settings import Settings
from anyformer.train.tasks import tables
from anyformer.train.tasks.base import Task
from anyformer.train.tasks.splits import Split, one_in_ten

COLUMNS = ("question", "answer")
VECTORS = re.compile(r"passages-(\d+)\.safetensors")
WINDOW = 200  # questions that the watch looks at
FEW = 0.05  # of the passages that could have been found: fewer are a collapse


@dataclass(frozen=True)
class Pair:
    """A question and its answer, as texts and as ids."""

    question: str
    ids: list[int]
    answer: list[int]


class Watch:
    """The watch on collapse: every question gets the same passages, whatever it asks (transformers#9405).

    Over the last 200 questions: the entropy of p(passage | question) over the K that were found, in nats (ln K: the
    model does not tell them apart), and the distinct passages as a share of those that could have been found.
    """

    def __init__(self, passages: int, say: Callable[[str], None]):
        self.passages, self.say, self.told = passages, say, False
        self.found: list[tuple[list[int], float]] = []

    def see(self, numbers: Tensor, scores: Tensor) -> None:
        """Notes what was found, (B, K)."""
        log = scores.float().log_softmax(1)
        entropy = -(log.exp() * log).sum(1)
        self.found = [*self.found, *zip(numbers.tolist(), entropy.tolist(), strict=True)][-WINDOW:]
        if len(self.found) == WINDOW and not self.told and self.share < FEW:
            self.told = True
            self.say(
                f"retrieval has collapsed: {WINDOW} questions got {self.distinct} of {self.passages} passages "
                f"({self.share:.1%} of what they could have got), entropy {self.entropy:.2f} of "
                f"{math.log(numbers.shape[1]):.2f} nats. A lower lr, a smaller refresh, or an encoder "
                "that was trained to search may help"
            )

    @property
    def distinct(self) -> int:
        """The number of different passages."""
        return len({n for row, _ in self.found for n in row})

    @property
    def share(self) -> float:
        """Distinct passages, of those that so many questions could have got at most."""
        return self.distinct / max(1, min(self.passages, sum(len(row) for row, _ in self.found)))

    @property
    def entropy(self) -> float:
        """Mean entropy, in nats."""
        return sum(e for _, e in self.found) / max(1, len(self.found))


@dataclass(eq=False)
class FoundRows:
    """Questions by number, each once in an epoch, with the passages that the model finds for them now.

    Args:
        batch, accumulate: of the run, so that the number of a row says its step. refresh: steps between two
            embeddings of all passages; 0 = only before the first one.
    """

    reader: Reader
    pairs: Sequence[Pair]
    seed: int
    batch: int
    refresh: int
    accumulate: int = 1
    folder: Path | None = None
    at: int = -1  # the step of the vectors
    watch: Watch | None = None
    say: Callable[[str], None] = field(default=lambda text: None)

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        step = first // (self.batch * self.accumulate)
        self.vectors_of(step - step % self.refresh if self.refresh else 0, step)
        items = shuffled(first, count, len(self.pairs), self.seed)[1]
        return self.made([self.pairs[i] for i in items.tolist()], watched=True)

    def made(self, pairs: Sequence[Pair], watched: bool = False) -> Batch:
        """The inputs and labels of some pairs."""
        questions = [pair.ids for pair in pairs]
        numbers, scores = self.reader.find(questions)
        if watched and self.watch is not None:
            self.watch.see(numbers, scores)
        ids, mask = filled(questions)
        batch = {"input_ids": ids, "attention_mask": mask}
        batch |= {n: t.cpu() for n, t in self.reader.given([pair.question for pair in pairs], numbers).items()}
        answers, real = filled([pair.answer for pair in pairs])
        labels = answers.masked_fill(real == 0, IGNORE)
        begin = torch.full((len(pairs), 1), self.reader.model.begin_id)
        return batch | {"decoder_input_ids": torch.cat((begin, answers[:, :-1]), 1), "labels": labels}

    def vectors_of(self, wanted: int, step: int) -> None:
        """Gives the reader the vectors of the step `wanted`: those of the run, or new ones."""
        if self.reader.model.document is None or self.at == wanted:
            return
        file = None if self.folder is None else self.folder / f"passages-{wanted:06d}.safetensors"
        if file is not None and file.exists():
            self.reader.vectors = load_file(file)["vectors"].to(self.reader.device)
        else:
            if step != wanted:
                self.say(f"step {step}: the passages' vectors of step {wanted} are gone; they are made again now")
            self.reader.refresh()
            if file is not None:
                self._keep(file, wanted)
        self.at = wanted

    def _keep(self, file: Path, step: int) -> None:
        """Writes the vectors; older ones go, except those that the last checkpoint goes on from."""
        folder = file.parent
        atomic_write(file, save({"vectors": self.reader.vectors.cpu().contiguous()}))
        saved = max((int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdigit()), default=0)
        numbers = {int(m[1]): p for p in folder.iterdir() if (m := VECTORS.fullmatch(p.name))}
        needed = max((n for n in numbers if n <= saved), default=0)
        for number, path in numbers.items():
            if number < min(needed, step):
                path.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class RetrievalTask(Task):
    """The task: `nats a token` of held-out answers, beside the frequencies of the training answers' tokens."""

    def begin(self, folder: Path, settings: Settings, say: Callable[[str], None]) -> None:
        rows: Any = self.rows
        rows.folder, rows.accumulate, rows.say = folder, settings.accumulate, say
        rows.watch = Watch(len(rows.reader.passages.rows), say)

    def baseline(self, batch: int) -> float:
        rows: Any = self.rows
        learned = torch.tensor([i for pair in rows.pairs for i in pair.answer])
        wanted = torch.cat([b[b != IGNORE] for b in (x["labels"] for x in self.held_out(batch))])
        counts = torch.bincount(learned, minlength=int(max(learned.max(), wanted.max())) + 1).double()
        return float(-((counts + 1) / (counts + 1).sum()).log()[wanted].mean())


class RetrievalData:
    """Rows with a question and an answer, and an index; one row of each ten is held out."""

    longest = 0
    classes = 0
    implied: dict[str, Any]

    def __init__(self, kind: str, options: TrainOptions):
        self.implied, self.options = {}, options
        self.tables, self.passages = tables.read(options.data, options.fields), opened(options)

    def words(self) -> Iterable[str]:
        """To make a tokenizer from: the passages, then questions and answers."""
        texts = [row.text for row in self.passages.rows]
        pairs = (str(row[name]) for table in self.tables for row in table.rows(COLUMNS) for name in COLUMNS)
        return corpora.beginning([*texts, *pairs], corpora.TOKENIZER_CHARACTERS)

    def task(self, model: Any, context: int | None) -> Task:
        """The task for a model."""
        return on_index(model, self.tables, self.passages, one_in_ten, self.options)


def opened(options: RunOptions) -> Passages:
    """The passages that the options name.

    Raises:
        ValueError: without an index, or for options that retrieval does not go with.
    """
    if options.index is None:
        raise ValueError("this model finds passages: set index to the folder of an index (`anyformer index FOLDER`)")
    if options.workers:
        raise ValueError(
            f"workers={options.workers} prepare batches ahead, and passages are found by the model of the step"
        )
    if options.parallel not in ("ddp", "zero") or (options.mesh or {}).get("tensor", 1) > 1:
        raise ValueError(f"parallel={options.parallel}: passages are found by a whole model; use ddp or zero")
    if options.refresh < 0:
        raise ValueError(f"refresh must be 0 (never) or a number of steps; got {options.refresh}")
    return Passages.of(options.index)


def on_index(
    model: Any, learn: Sequence[Any], passages: Passages, held_out: Split | Sequence[Any], options: RunOptions
) -> Task:
    """The task of the loop.

    Raises:
        ValueError: naming the row, for an empty question or answer, or ones that are too long; for an index of another
            encoder; for `refresh` without an encoder of passages.
    """
    if options.refresh and model.document is None:
        raise ValueError(
            f"refresh={options.refresh} embeds the passages again, and this model has no encoder of passages that "
            "learns: build it with overrides.documents true, or leave refresh out"
        )
    reader = Reader(model, passages)
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for table in learn:
        pairs = list(_pairs(reader, table))
        if callable(held_out):
            for part, places in zip(parts, held_out(table.source.name, len(pairs)), strict=True):
                part += [pairs[i] for i in places.of(torch.arange(places.size).numpy()).tolist()]
        else:
            parts[0].extend(pairs)
    for table in [] if callable(held_out) else held_out:
        parts[1].extend(_pairs(reader, table))
    if model.document is None and encoder_of(model) is None:  # the vectors that it learns to find
        config = dict((model.origin or {}).get("config") or {}) | {"dataset": passages.encoder}
        model.origin = {**(model.origin or {}), "config": config}
    rows = FoundRows(reader, parts[0], options.seed, options.batch, options.refresh)

    def measured(batch: int) -> Iterator[Batch]:
        for at in range(0, len(parts[1]), batch):
            yield rows.made(parts[1][at : at + batch])

    told = hashlib.sha256(repr([(p.question, p.ids, p.answer) for half in parts for p in half]).encode())
    told.update(repr([row.text for row in passages.rows]).encode())
    facts = {"task": "retrieve", "examples": told.hexdigest()[:16], "passages": reader.k, "refresh": options.refresh}
    summary = f"{len(parts[0]):,} questions, {len(parts[1]):,} held out, {len(passages.rows):,} passages"
    return RetrievalTask(
        "retrieve", rows, measured, objectives.seq2seq, objectives.seq2seq, "nats a token", summary, facts,
        size=len(parts[0]),
    )  # fmt: skip


def _pairs(reader: Reader, table: Any) -> Iterator[Pair]:
    most = reader.model.context
    for number, row in enumerate(table.rows(COLUMNS), 1):
        where = f"{table.source.name}, row {number}"
        for name in COLUMNS:
            value = row.get(name)
            if not isinstance(value, str | int | float) or not str(value).strip():
                raise ValueError(f"{where}: {name} is {value!r:.60}; every row needs a text there")
        question = str(row["question"])
        try:
            ids = reader.question(question)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        answer = reading(reader.reads, str(row["answer"]), ends=True).ids
        if most is not None and len(answer) > most:
            raise ValueError(f"{where}: the answer has {len(answer)} tokens, and the generator writes {most}")
        yield Pair(question, ids, answer)
