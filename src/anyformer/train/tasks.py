"""Tasks: from text or rows to batches by number, with what is learned, what is measured, and what must be beaten.

B rows of a batch, T places, N examples, C channels, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from anyformer.data import corrupt
from anyformer.data.batches import Batch
from anyformer.data.order import shuffled
from anyformer.hub.tokenizer import Tokenizer
from anyformer.train import kinds, objectives
from anyformer.train.kinds import role
from anyformer.train.objectives import IGNORE, counted

Example = dict[str, Any]  # inputs by name and `labels`: arrays (T,), images (C, height, width), or numbers
Draw = Callable[[np.ndarray, np.random.Generator], Example]
HELD_OUT = 256  # examples, at most, on which a task on text is measured
EVERY = 10  # one row of so many is held out
SEED = 1 << 40  # of what is held out: the same in every run, and no run's own
LEARNED = 64  # batches from which the baseline learns


@dataclass(frozen=True)
class Task:
    """What is trained on, and how well.

    Attributes:
        rows: a function from the row's number to the examples: `rows(first, count)`.
        held_out: examples that are never trained on.
        objective: what is learned. `loss`: what is measured in nats a label; None: the share of wrong labels is.
        classes: their names, where there are any.
        notes: what a user should know.
        facts: what decides the numbers, for comparison when a run resumes.
    """

    name: str
    rows: Callable[[int, int], list[Example]]
    held_out: list[Example]
    objective: Any
    loss: Any = None
    pad: int = 0
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What `measure` is in."""
        return "of labels wrong" if self.loss is None else "nats a label"

    def batches(self, batch: int) -> Callable[[int], Batch]:
        """Batch number i, always the same one; two batches of 8 are one of 16."""
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        return lambda number: collate(self.rows(number * batch, batch), self.pad)

    def measured(self, batch: int) -> Iterator[Batch]:
        """What is held out, in batches."""
        for start in range(0, len(self.held_out), batch):
            yield collate(self.held_out[start : start + batch], self.pad)

    def measure(self, model: Any, batch: int) -> float:
        """On what is held out, lower is better: the mean loss of a label, or the share of wrong ones."""
        device, total, count = next(model.parameters()).device, 0.0, 0
        for given in self.measured(batch):
            inputs = {name: value.to(device) for name, value in given.items()}
            labels = inputs.pop("labels")
            output = model(**inputs)
            if self.loss is None:
                total += int(((output.logits.argmax(-1) != labels) & (labels != IGNORE)).sum())
            else:
                labels = self._said(labels)
                total += float(self.loss(output, labels, 1.0))
            count += int(counted(labels))
        return total / max(1, count)

    def baseline(self, batch: int) -> float:
        """The same of a guess that looks at nothing: how often each label is, counted in what is trained on."""
        learned = torch.cat(
            [self._said(collate(self.rows(i * batch, batch))["labels"]).flatten() for i in range(LEARNED)]
        )
        wanted = torch.cat([self._said(b["labels"]).flatten() for b in self.measured(batch)])
        learned, wanted = learned[learned != IGNORE], wanted[wanted != IGNORE]
        counts = torch.bincount(learned, minlength=int(max(learned.max(), wanted.max())) + 1).double()
        if self.loss is None:
            return float((wanted != counts.argmax()).double().mean())
        return float(-((counts + 1) / (counts + 1).sum()).log()[wanted].mean())

    def _said(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels of tokens alone, where those of pairs stand before them."""
        return labels[:, 1:] if isinstance(self.objective, objectives.MaskedAndNextSentence) else labels


def collate(examples: Sequence[Example], pad: int = 0) -> Batch:
    """Examples as a batch, padded on the right to the longest, with masks where anything is padded."""
    fill = {"labels": IGNORE, "token_type_ids": 0}
    batch: Batch = {}
    for name in examples[0]:
        values = [np.asarray(example[name]) for example in examples]
        if values[0].dtype == np.uint8:  # an image: 0 … 255 to -1 … 1
            batch[name] = torch.from_numpy(np.stack(values)).float() / 127.5 - 1  # (B, C, height, width)
            continue
        if values[0].ndim == 0:
            batch[name] = torch.tensor([int(v) for v in values])  # (B,)
            continue
        lengths, width = [len(v) for v in values], max(map(len, values))
        batch[name] = torch.full((len(values), width), fill.get(name, pad))  # (B, T)
        for row, value in zip(batch[name], values, strict=True):
            row[: len(value)] = torch.from_numpy(value.astype(np.int64))
        if name.endswith("input_ids") and min(lengths) < width:
            mask = name.replace("input_ids", "attention_mask")
            batch[mask] = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return batch


# ------------------------------------------------------------------------------------------------ text


def on_text(kind: str, model: Any, learn: np.ndarray, held_out: np.ndarray, context: int, seed: int) -> Task:
    """A task on text, as the ids (N,) of what is trained on and of what is not.

    Raises:
        ValueError: for a text that is too short, or a tokenizer without the tokens that the task needs.
    """
    if context < 8:
        raise ValueError(f"context={context}: the task {kind} needs at least 8 tokens")
    make = {"masked": _masked, "span": _span, "denoise": _denoise}[kind]
    draw, needed, objective, loss = make(model, context)
    for name, ids in (("train on", learn), ("measure on", held_out)):
        if len(ids) < needed:
            raise ValueError(
                f"the text to {name} has {len(ids)} tokens, and the task {kind} with context={context} needs {needed}; "
                "give more text or a shorter context"
            )

    def rows(first: int, count: int) -> list[Example]:
        return [draw(learn, corrupt.generator(seed, i)) for i in range(first, first + count)]

    some = min(HELD_OUT, max(16, len(held_out) // needed))
    measured = [draw(held_out, corrupt.generator(SEED, i)) for i in range(some)]
    print_ = hashlib.sha256(learn.tobytes() + held_out.tobytes()).hexdigest()[:16]
    return Task(kind, rows, measured, objective, loss, model.tokenizer.pad_id, facts={"corpus": print_})


def _window(ids: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(len(ids) - length + 1))
    return ids[start : start + length].astype(np.int64)


def _masked(model: Any, context: int) -> tuple[Draw, int, Any, Any]:
    """[CLS] text [SEP], or with a head for it [CLS] text [SEP] text [SEP], some of it hidden."""
    t = model.tokenizer
    cls, sep, mask = (role(t, "masked", f"{n}_token") for n in ("cls", "sep", "mask"))
    added = {i for i, token in t.core.get_added_tokens_decoder().items() if token.special}
    masking = corrupt.Masking(mask, t.vocab_size, tuple(sorted(added | {cls, sep, t.pad_id})))

    def alone(ids: np.ndarray, rng: np.random.Generator) -> Example:
        whole = np.concatenate(([cls], _window(ids, context - 2, rng), [sep]))
        read, labels = masking(whole, rng)
        return {"input_ids": read, "labels": labels}

    def paired(ids: np.ndarray, rng: np.random.Generator) -> Example:
        found = corrupt.pair(ids, context - 3, rng)
        whole, types = found.joined(cls, sep)
        read, labels = masking(whole, rng)
        return {"input_ids": read, "token_type_ids": types, "labels": np.concatenate(([found.label], labels))}

    if "nsp" in model.heads:
        return paired, 3 * (context - 3), objectives.MaskedAndNextSentence(), objectives.masked_lm
    return alone, context - 2, objectives.masked_lm, objectives.masked_lm


def _span(model: Any, context: int) -> tuple[Draw, int, Any, Any]:
    """T5: sources of `context` tokens, and the spans that are missing there."""
    end = role(model.tokenizer, "span", "eos_token")
    spans = corrupt.Spans(kinds.sentinels(model.tokenizer), end)
    length = spans.room(context)

    def draw(ids: np.ndarray, rng: np.random.Generator) -> Example:
        return taught(*spans(_window(ids, length, rng), rng), model.begin_id)

    return draw, length, objectives.seq2seq, objectives.seq2seq


def _denoise(model: Any, context: int) -> tuple[Draw, int, Any, Any]:
    """BART: sentences in another order, spans that are one mask each; the target is the text."""
    t = model.tokenizer
    mask, end = role(t, "denoise", "mask_token"), role(t, "denoise", "eos_token")
    letters = ((i, (t.core.id_to_token(i) or "").rstrip("ĠĊ▁")) for i in range(t.vocab_size))
    stops = [i for i, token in letters if token.endswith((".", "!", "?"))]

    def draw(ids: np.ndarray, rng: np.random.Generator) -> Example:
        text = _window(ids, context - 2, rng)
        noisy = corrupt.infill(corrupt.permute(text, stops, rng), mask, rng)[: context - 1]  # many empty spans
        return taught(np.append(noisy, end), np.append(text, end), model.begin_id)

    return draw, context - 2, objectives.seq2seq, objectives.seq2seq


def taught(source: np.ndarray, target: np.ndarray, begin_id: int) -> Example:
    """What an encoder-decoder reads and says, by teacher forcing."""
    return {"input_ids": source, "decoder_input_ids": np.append(begin_id, target[:-1]), "labels": target}


# ------------------------------------------------------------------------------------------------ rows


def split(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train on, and every tenth one, which is held out: of sorted classes, some of each."""
    if len(rows) < 2:
        raise ValueError(f"there must be at least 2 rows, one to train on and one to measure on; got {len(rows)}")
    return [row for i, row in enumerate(rows) if i % EVERY], list(rows[::EVERY])


def classes(kind: str, rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The names of all classes in the rows, sorted, numbers as numbers."""
    found = {label for row in rows for label in (row["labels"] if kind == "tag" else [row.get("class", row["label"])])}
    if len(found) < 2:
        raise ValueError(f"the rows have one class only: {', '.join(map(str, found))}")
    return tuple(str(c) for c in sorted(found, key=lambda c: (isinstance(c, str), c)))


def texts(kind: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """All text of the rows, for a tokenizer."""
    if kind == "images":
        return []
    if kind == "tag":
        return [" ".join(row["words"]) for row in rows]
    return [str(row[name]) for row in rows for name in kinds.COLUMNS[kind] if name != "label"]


def on_rows(kind: str, model: Any, rows: Sequence[dict[str, Any]], context: int, seed: int) -> Task:
    """A task on rows, see `kinds`: every tenth row is held out, the others come once in an epoch, in random order.

    Raises:
        ValueError: for rows with one class, or a head that does not know all classes.
    """
    names = () if kind == "seq2seq" else classes(kind, rows)
    encode = {"seq2seq": _pair, "classify": _classified, "tag": _tagged, "images": _pictured}[kind]
    cut: list[int] = []
    learn, held_out = ([encode(model, row, names, context, cut) for row in part] for part in split(rows))

    def drawn(first: int, count: int) -> list[Example]:
        return [learn[i] for i in shuffled(first, count, len(learn), seed)[1]]

    digest = hashlib.sha256()
    for example in learn + held_out:
        for value in example.values():
            digest.update(np.ascontiguousarray(value).tobytes())
    notes = (f"{len(cut)} of {len(rows)} rows were longer than {context} tokens and were cut",) if cut else ()
    facts = {"rows": digest.hexdigest()[:16], "classes": list(names)}
    text = kind == "seq2seq"
    objective, loss = (objectives.seq2seq, objectives.seq2seq) if text else (objectives.classification, None)
    pad = model.tokenizer.pad_id if kind != "images" else 0
    task = Task(kind, drawn, held_out, objective, loss, pad, names, notes, facts)
    _check_head(model, task)
    return task


@torch.no_grad()
def _check_head(model: Any, task: Task) -> None:
    batch = next(task.measured(1))
    device, labels = next(model.parameters()).device, batch.pop("labels")
    logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
    if logits is None or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"the model has no head for the task {task.name}: it gives {_shape(logits)} for {_shape(labels)}"
        )
    if task.classes and logits.shape[-1] != len(task.classes):
        raise ValueError(f"the data has {len(task.classes)} classes, the model's head {logits.shape[-1]}")


def _shape(value: torch.Tensor | None) -> str:
    return "nothing" if value is None else str(tuple(value.shape))


def _pair(model: Any, row: dict[str, Any], names: tuple[str, ...], context: int, cut: list[int]) -> Example:
    end = role(model.tokenizer, "seq2seq", "eos_token")
    both = [model.tokenizer.encode(str(row[side]), special=False) for side in ("source", "target")]
    if max(map(len, both)) >= context:
        cut.append(1)
    source, target = (np.array([*ids[: context - 1], end]) for ids in both)
    return taught(source, target, model.begin_id)


def _around(tokenizer: Tokenizer, kind: str, ids: Sequence[int]) -> np.ndarray:
    return np.array([role(tokenizer, kind, "cls_token"), *ids, role(tokenizer, kind, "sep_token")])


def _classified(model: Any, row: dict[str, Any], names: tuple[str, ...], context: int, cut: list[int]) -> Example:
    ids = model.tokenizer.encode(str(row["text"]), special=False)
    if len(ids) > context - 2:
        cut.append(1)
    whole = _around(model.tokenizer, "classify", ids[: context - 2])
    return {"input_ids": whole, "labels": names.index(str(row["label"]))}


def _tagged(model: Any, row: dict[str, Any], names: tuple[str, ...], context: int, cut: list[int]) -> Example:
    """The first token of each word has its label."""
    words, said = row["words"], row["labels"]
    if len(words) != len(said):
        raise ValueError(f"a row has {len(words)} words and {len(said)} labels: {' '.join(map(str, words))[:60]!r}")
    ids: list[int] = []
    labels: list[int] = []
    for word, label in zip(words, said, strict=True):
        new = model.tokenizer.encode(f" {word}" if ids else str(word), special=False)
        ids += new
        labels += [names.index(str(label)), *[IGNORE] * (len(new) - 1)][: len(new)]
    if len(ids) > context - 2:
        cut.append(1)
    whole = _around(model.tokenizer, "tag", ids[: context - 2])
    return {"input_ids": whole, "labels": np.array([IGNORE, *labels[: context - 2], IGNORE])}


def _pictured(model: Any, row: dict[str, Any], names: tuple[str, ...], context: int, cut: list[int]) -> Example:
    """An image (PIL, or an array of 0 … 255) in the model's size and colours."""
    side, image = model.embed.grid * model.embed.patch, row["image"]
    if isinstance(image, np.ndarray):
        pixels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        if pixels.shape != (model.embed.channels, side, side):
            raise ValueError(f"an image is {pixels.shape}, the model reads {(model.embed.channels, side, side)}")
    else:
        image = image.convert("L" if model.embed.channels == 1 else "RGB")
        pixels = np.asarray(image if image.size == (side, side) else image.resize((side, side)))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return {
        "pixel_values": np.ascontiguousarray(pixels, np.uint8),
        "labels": names.index(str(row.get("class", row["label"]))),
    }
