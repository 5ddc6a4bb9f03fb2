"""What `train` learns from: text, or rows. Read before there is a model, made into a task when there is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from anyformer.data import corpus as corpora
from anyformer.train import kinds, rows, tasks
from anyformer.train.deciding import Decisions
from anyformer.train.examples import Encoder

LONGEST = 256  # tokens of a window, where nothing is said and the model could read more


class Texts:
    """Text, see `data.corpus`. `given` are the options of `train`, which says what is raised."""

    classes, longest = 0, LONGEST
    implied: ClassVar[dict[str, Any]] = {}  # hyperparameters that the data decide

    def __init__(self, kind: str, given: dict[str, Any]):
        self.kind, self.given = kind, given
        self.texts = corpora.read(given["data"], given["fields"], given["cache"])

    def words(self) -> Iterator[str]:
        """To make a tokenizer from."""
        return corpora.learn(self.texts)

    def task(self, model: Any) -> tasks.Task:
        """The task for a model."""
        given = self.given
        # a tokenizer that loses letters has less to say than the bytes that it would be measured by
        bigram = corpora.bigram(self.texts) if corpora.comes_back(model.tokenizer, self.texts) else None
        corpus = corpora.Corpus.of(model.tokenizer, self.texts, given["cache"])
        return tasks.on_text(self.kind, model, corpus, given["rows"], given["context"], given["seed"], bigram)


class Tables:
    """Rows, see `train.rows`; every tenth one is held out."""

    implied: ClassVar[dict[str, Any]] = {}

    def __init__(self, kind: str, given: dict[str, Any]):
        if given["rows"] == "packed":
            raise ValueError(f"rows=packed is for text, and {kind} reads each row once in an epoch; leave rows out")
        self.kind, self.given, self.tables = kind, given, rows.read(given["data"], given["fields"])
        options, has = kinds.COLUMNS[kind], set(self.tables[0].columns())
        self.columns = next((c for c in options if has.issuperset(c)), options[0])
        self.names = () if kind in ("seq2seq", "match") else rows.classes(self.tables, self.columns)

    @property
    def longest(self) -> int:
        """Tokens of an example, where nothing is said and the model could read more; 0 where there are none."""
        return 0 if self.kind == "images" else LONGEST

    @property
    def classes(self) -> int:
        """How many there are, or 0."""
        return len(self.names)

    def words(self) -> Iterable[str]:
        """To make a tokenizer from."""
        return corpora.beginning(rows.words(self.tables, self.columns), corpora.TOKENIZER_CHARACTERS)

    def task(self, model: Any) -> tasks.Task:
        """The task for a model."""
        given = self.given
        encoder = Encoder(self.kind, self.columns, model, self.names, given["context"] or 0)
        task = rows.on_rows(encoder, self.tables, rows.tenth, given["seed"], given["cache"])
        rows.check_head(model, task, self.names)
        if self.names:  # what the numbers of the head mean is kept with the model
            model.origin = {**(model.origin or {}), "classes": list(self.names)}
        return task


def material(kind: str, given: dict[str, Any]) -> Texts | Tables | Decisions:
    """What `train` was given, for a task.

    Raises:
        FileNotFoundError, ValueError: for what is not there, or does not fit.
    """
    if kind in ("act", "clone"):
        return Decisions(kind, given)
    return (Tables if kind in kinds.COLUMNS else Texts)(kind, given)
