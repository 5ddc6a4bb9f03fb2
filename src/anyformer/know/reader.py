"""Passages of an index for a model that reads them (RAG): found by its question's vector, written in front of the
question. N passages, K of them for each of B questions, E width of vectors.

```
question ── question encoder ── vector (E,) ──> products with (N, E) ──> the K largest ──> texts ──> generator's tokens
                                     index, or the model's own encoder of passages ──┘
```
The generator reads `prefix title titled passage between question`, whole: a passage that does not fit is an error.
Special tokens that a passage or a question spells become letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.data.batches import filled
from anyformer.generate.decoding import evaluating
from anyformer.generate.retrieving import CONTEXT, Response, respond
from anyformer.generate.tools import as_letters
from anyformer.hub.text.reading import reading
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.know.store import Row, Store
from anyformer.skeletons.retrieving import DOCUMENT, VECTORS, RagToken

TOGETHER = 64  # passages that are embedded at once
SIDES = {"question": "question_encoder_tokenizer", "generator": "generator_tokenizer"}  # folders of published files


@dataclass(frozen=True)
class Passages:
    """The passages of an index, in its order.

    Attributes:
        rows: texts and places. vectors: (N, E), of length 1, by the encoder of the index.
        encoder: its name. folder: of the index.
    """

    rows: tuple[Row, ...]
    vectors: np.ndarray
    encoder: str
    folder: Path

    @classmethod
    def of(cls, folder: str | Path) -> Passages:
        """The passages of an index (`anyformer index`).

        Raises:
            FileNotFoundError: without an index there. ValueError: for one that holds no passage.
        """
        store = Store(Path(folder).expanduser())
        try:
            ids, vectors = store.vectors(int(store.meta("width") or 1))
            at = range(0, len(ids), 500)
            rows = tuple(row for first in at for row in store.rows(ids[first : first + 500].tolist()))
            name = store.meta("encoder") or "?"
        finally:
            store.close()
        if not rows:
            raise ValueError(f"{store.folder} holds no passage: `anyformer index` it again")
        return cls(rows, vectors.copy(), name, store.folder)


@dataclass(frozen=True)
class Reply:
    """An answer, and the passages that it is a mean over, the likeliest behind it first.

    Attributes:
        passages: (row, p(passage | question), p(passage | question, answer)).
    """

    question: str
    text: str
    score: float
    passages: list[tuple[Row, float, float]] = field(default_factory=list)


class Reader:
    """A model with the passages that it reads.

    Args:
        model: `RagToken` or `RagSequence`, with a tokenizer (or two, in the folders of published files).
        passages: of an index. k: for each question; by default the model's number.

    Attributes:
        vectors: (N, E), by which passages are found: those of the index; of a model with an encoder of passages, its.

    Raises:
        ValueError: for a model without tokenizer, a k beyond the index, or an index of another encoder.
    """

    def __init__(self, model: Any, passages: Passages, k: int | None = None):
        if not isinstance(model, RagToken):
            raise ValueError(f"{type(model).__name__} reads no passages; a RAG model does (`anyformer ls`)")
        self.model, self.passages, self.k = model, passages, model.passages if k is None else k
        count = len(passages.rows)
        if not 1 <= self.k <= count:
            raise ValueError(f"k is {self.k}, and {passages.folder} holds {count} passages; give k from 1 to {count}")
        self.asks, self.reads = (tokenizer_of(model, side) for side in SIDES)
        self.texts = tuple(self._before(row) for row in passages.rows)
        self.words: tuple[list[int], ...] = ()  # of the model's own encoder
        if model.document is None:
            self._check_encoder()
            self.vectors = torch.as_tensor(passages.vectors)
        else:
            self.words = tuple(self._asked(row.text, row.place()) for row in passages.rows)
            self.refresh()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _before(self, row: Row) -> str:
        trail, text = (as_letters(self.reads, part) for part in (row.trail, row.text))
        title = f"{trail}{self.model.titled}" if trail else ""
        return f"{self.model.prefix}{title}{text}{self.model.between}"

    def _check_encoder(self) -> None:
        """Raises ValueError for an index of another width, or of another encoder than the one that it learned with."""
        width, name = self.passages.vectors.shape[1], encoder_of(self.model)
        where = f"{self.passages.folder} was made by {self.passages.encoder}"
        if width != self.model.vector_width:
            raise ValueError(
                f"{where}, {width} wide, and the model's questions are {self.model.vector_width} wide: make the index "
                f"with {name or 'the encoder of passages that the model was trained with'}"
            )
        if name is not None and name != self.passages.encoder:
            raise ValueError(
                f"{where}, and the model learned to find vectors of {name}: their products mean nothing. Make the "
                f"index again: `anyformer index FOLDER --out … --model {name}`"
            )

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes the vectors of all passages again, by the model's own encoder of passages, if it has one."""
        if self.model.document is None:
            return
        order = sorted(range(len(self.words)), key=lambda i: -len(self.words[i]))
        made = []
        with evaluating(self.model):
            for at in range(0, len(order), TOGETHER):
                ids, mask = self._filled([self.words[i] for i in order[at : at + TOGETHER]])
                made.append(self.model.written(ids, mask).float())
        self.vectors = torch.cat(made)[torch.tensor(order, device=self.device).argsort()]

    def _asked(self, text: str, where: str) -> list[int]:
        """The tokens of a question or a passage, for an encoder."""
        ids, most = reading(self.asks, as_letters(self.asks, text)).ids, self.model.question.context
        if not ids:
            raise ValueError(f"{where} has no tokens: {text!r:.60}")
        if most is not None and len(ids) > most:
            raise ValueError(
                f"{where} has {len(ids)} tokens, and the encoder of questions and passages reads {most}: "
                f"nothing is cut; make it shorter: {text!r:.60}"
            )
        return ids

    def question(self, text: str) -> list[int]:
        """The ids of a question, for its encoder.

        Raises:
            ValueError: for one that is empty, or longer than the encoder reads.
        """
        if not text.strip():
            raise ValueError("the question is empty")
        return self._asked(text, "the question")

    @torch.no_grad()
    def find(self, questions: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """The numbers of the K passages with the largest products, and these, (B, K); of equal ones the first."""
        ids, mask = self._filled(questions)
        with evaluating(self.model):
            asked = self.model.asked(ids, mask).float()
        products = asked @ self.vectors.to(self.device).T  # (B, N)
        scores, numbers = products.sort(dim=1, descending=True, stable=True)
        return numbers[:, : self.k].cpu(), scores[:, : self.k].cpu()

    def given(self, questions: Sequence[str], numbers: Tensor) -> dict[str, Tensor]:
        """The model's inputs for these passages, (B, K), beside the questions.

        Raises:
            ValueError: naming the passage, if it is longer with its question than the generator reads.
        """
        rows = [[self._whole(int(n), text) for n in row] for text, row in zip(questions, numbers, strict=True)]
        made = self._padded(CONTEXT, [ids for row in rows for ids in row], numbers)
        if self.model.document is None:
            vectors = self.vectors[numbers].to(next(self.model.parameters()).dtype)
            return made | {VECTORS: vectors.to(self.device)}
        return made | self._padded(DOCUMENT, [self.words[n] for n in numbers.flatten().tolist()], numbers)

    def _whole(self, number: int, question: str) -> list[int]:
        ids = reading(self.reads, self.texts[number] + as_letters(self.reads, question), ends=True).ids
        most = min(filter(None, (self.model.longest_passage, self.model.context)))
        if len(ids) > most:
            raise ValueError(
                f"passage {self.passages.rows[number].place()} has {len(ids)} tokens with its question, and the "
                f"generator reads {most}: nothing is cut. Index shorter passages, or load the model with a larger "
                f"`longest`{'' if self.model.context is None else f' (its generator reads {self.model.context})'}"
            )
        return ids

    def _filled(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = filled(rows)
        return ids.to(self.device), mask.to(self.device)

    def _padded(self, prefix: str, rows: Sequence[list[int]], like: Tensor) -> dict[str, Tensor]:
        ids, mask = self._filled(rows)
        return {
            f"{prefix}input_ids": ids.unflatten(0, tuple(like.shape)),
            f"{prefix}attention_mask": mask.unflatten(0, tuple(like.shape)),
        }

    def ask(
        self, questions: Sequence[str], *, max_new_tokens: int = 32, num_beams: int = 1, batch: int = 16
    ) -> list[Reply]:
        """Answers, each with its passages.

        Args:
            num_beams: above 1 a beam search; of a RAG-sequence that of the paper, over the beams of each passage.
            batch: questions that are answered at once.
        """
        made = list[Reply]()
        for at in range(0, len(questions), batch):
            texts = list(questions[at : at + batch])
            ids = [self.question(text) for text in texts]
            numbers, _ = self.find(ids)
            thorough = num_beams > 1 and self.model.one_passage
            found = respond(
                self.model, ids, self.given(texts, numbers), max_new_tokens=max_new_tokens, num_beams=num_beams,
                thorough=thorough,
            )  # fmt: skip
            made += [self._reply(*each) for each in zip(texts, numbers.tolist(), found, strict=True)]
        return made

    def _reply(self, question: str, numbers: list[int], response: Response) -> Reply:
        rows = [self.passages.rows[n] for n in numbers]
        passages = sorted(zip(rows, response.prior, response.posterior, strict=True), key=lambda p: -p[2])
        return Reply(question, self.reads.decode(response.tokens).strip(), response.score, passages)


def tokenizer_of(model: Any, side: str) -> Any:
    """The tokenizer of the encoders ("question") or of the generator: the model's, or that of the published folder.

    Raises:
        ValueError: if there is none, or one that knows more tokens than its side of the model.
    """
    folder = None if model.ledger is None else Path(model.ledger.path) / SIDES[side]
    made = Tokenizer.load(folder) if folder is not None and folder.is_dir() else model.tokenizer
    if made is None:
        raise ValueError(
            f"the model has no tokenizer: its folder needs a tokenizer.json, or {' and '.join(SIDES.values())}"
        )
    if made.vocab_size > (known := getattr(model, side).vocab):
        raise ValueError(f"the tokenizer has {made.vocab_size} tokens, and the model's {side} knows {known}")
    return made


def encoder_of(model: Any) -> str | None:
    """The name of the encoder whose vectors the model learned to find, or None."""
    return ((model.origin or {}).get("config") or {}).get("dataset")


def written(reply: Reply) -> str:
    """A reply as a reader sees it: the answer, and its passages with both probabilities."""
    lines = [reply.text or "(the model wrote nothing)", "", "after before  passage"]
    for row, before, behind in reply.passages:
        lines.append(f"{behind:5.2f} {before:6.2f}  {row.place()}: {' '.join(row.text.split())[:100]}")
    return "\n".join(lines)
