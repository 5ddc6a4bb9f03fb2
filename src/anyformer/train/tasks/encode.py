"""Rows of tables, encoded as examples of a model. T time.

| task     | skeleton          | a row has                                    | what is counted in the loss          |
|----------|-------------------|----------------------------------------------|--------------------------------------|
| write    | CausalLM          | `text`                                       | every token                          |
| write    | CausalLM          | `prompt`, `response`, or `messages`          | what the assistant says, and its end |
| seq2seq  | EncoderDecoder    | `source`, `target`, or `prompt`, `response`  | the target and its end               |
| classify | Encoder           | `text`, `label`                              | the label                            |
| tag      | Encoder           | `words`, `labels`, as many                   | the label of each word               |
| embed    | Encoder           | `anchor`, `positive`, which belong together  | to find the second text among all    |
| images   | Encoder of images | `image`, `label`                             | the label                            |
| match    | DualTower         | `image`, `text`, which belong together       | to find either in a batch            |
| paint    | Denoiser          | `image`, `label`                             | what is said of the noised image     |
| draw     | Drawer            | `image`, `text`                              | each code of the image               |
| compose  | Composer          | `sound` or `codes`; `text`, or none          | each code of the sound               |
| stage    | StagedLM          | `text`, `semantic`, and `sound` or `codes`   | the codes of its last segment        |
| reconst… | Autoencoder       | `image`                                      | every number of its pixels           |
| reconst… | Codec             | `sound`                                      | every sample, and log-mel spectra    |
| ctc      | Encoder of sound  | `sound`, a file, and `text`                  | all paths of frames that spell it    |
| contrast | Encoder of sound  | `sound`                                      | hidden frames, found among others    |
| units    | Encoder of sound  | `sound`                                      | the clusters of hidden frames        |
| caption  | Spliced           | `image`, `text`; or `prompt`, `response`     | the text or the response, its end    |
| answer   | CrossEncoder      | `question`, `features`, `boxes`, `label`     | the label                            |

`messages` are [{"role", "content"}, …]. An example is arrays by name: the model's inputs (T,), and `labels`.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.data import pictures
from anyformer.data.records import Row
from anyformer.data.store import Example
from anyformer.generate.answering import asked
from anyformer.generate.seeing import placeholder, seen_by, spoken
from anyformer.hub.text.reading import of_words, reading
from anyformer.train.objectives import IGNORE
from anyformer.train.tasks import composing, sounds
from anyformer.train.tasks.registry import KINDS


@dataclass(frozen=True)
class RowEncoder:
    """Rows of a task to examples of a model.

    Args:
        columns: those of the task that the rows have.
        names: the classes, where there are any. limit: tokens; longer texts are cut.
        root: the folder below which images lie that a row names.
        units: clusters of frames (`tasks.hiding.Clusters`), of the task units. codec: of the codes of the task stage.
    """

    task: str
    columns: tuple[str, ...]
    model: Any
    names: tuple[str, ...]
    limit: int
    root: Path = field(default_factory=Path)
    units: Any = None
    codec: Any = None

    def fingerprint(self) -> str:
        """Everything that decides the encoding, for the key of the cache."""
        t, m = self.model.tokenizer, self.model
        parts: list[Any] = [self.task, self.columns, self.names]
        if self.task in ("ctc", "contrast", "units") or self.columns == ("sound",):
            parts += [str(m.embed), str(m.processor), None if self.units is None else self.units.centres.tobytes()]
        if self.task in composing.TASKS:
            parts += composing.fingerprint(m, self.codec)
        if self.tokenized:
            parts += [self.limit, t.core.to_str(), sorted(t.roles.items()), t.template, m.vocab]
            parts += [getattr(m, "begin_id", None)]
        if self.task == "caption":
            parts += [sorted(m.placeholders), str(m.processor) if seen_by(m).packed else self.positions]
        return repr(parts)

    @property
    def tokenized(self) -> bool:
        """True if its examples hold token ids."""
        return KINDS[self.task].text and self.columns not in (("image", "label"), ("sound",), ("codes",))

    @functools.cached_property
    def positions(self) -> int:
        """The positions that a picture takes in a text.

        Raises:
            ValueError: if that depends on the picture.
        """
        blank = [np.zeros((*size, 3), np.uint8) for size in ((40, 60), (60, 40))]
        shapes = [self.model.processor(picture)["pixel_values"].shape for picture in blank]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the model's processor ({self.model.processor}) makes pictures of different sizes; "
                "give it a crop, or a size of height and width"
            )
        return seen_by(self.model).lengths({"pixel_values": torch.zeros(shapes[0])})[0]

    def taken(self, image: Any) -> int:
        """The positions that this picture takes in a text."""
        medium = seen_by(self.model)
        if not medium.packed:
            return self.positions
        named = isinstance(image, str | os.PathLike)
        source = self.root / pictures.below(self.root, image) if named else pictures.content(image)
        return medium.lengths(self.model.processor([source]))[0]

    def all(self, rows: Iterable[Row], where: str) -> Iterator[Example | None]:
        """The examples of all rows; None for a row with nothing to learn.

        Raises:
            ValueError: for a value that is none, a label that is no class, a token that the model does not know, with
                the row's number.
        """
        encode = _ENCODERS[self.task]
        for number, row in enumerate(rows, 1):
            try:
                for column in self.columns:
                    _check(column, row[column])
                made: Sequence[Example | None] = encode(self, row) or [None]
                for example in made:
                    self._known(example)
            except ValueError as error:
                raise ValueError(f"{where}, row {number}: {error}") from None
            yield from made

    def _known(self, example: Example | None) -> None:
        ids = () if example is None else example.get("input_ids", ())
        most = max((i for i in ids if i not in self.model.placeholders), default=0)
        if len(ids) and most >= self.model.vocab:
            raise ValueError(
                f"token id {most} is outside the model's vocabulary of {self.model.vocab}: the tokenizer belongs "
                "to another model"
            )

    def place(self, name: object) -> int:
        """The number of a class."""
        if str(name) not in self.names:
            raise ValueError(
                f"the label {str(name)!r} is in the held-out part only; examples for training have: "
                f"{', '.join(self.names)}"
            )
        return self.names.index(str(name))


def _check(column: str, value: Any) -> None:
    """Lists where there must be some; elsewhere text or a number; images are looked at later."""
    lists = dict.fromkeys(("messages", "words", "labels", "features", "boxes", "semantic"), list)
    wanted = {**lists, "image": object, "codes": (str, list)}.get(column, (str, int, float))
    if not isinstance(value, wanted) or (isinstance(value, str | list) and not value):  # type: ignore[arg-type]
        kind = "a list that is not empty" if wanted is list else "text or a number"
        raise ValueError(f"{column!r} is {value!r:.60}; every row needs {kind} there")


def _written(e: RowEncoder, row: Row) -> list[Example]:
    ids, labels = written(e.model.tokenizer, row, e.columns[0], e.limit)
    if all(label == IGNORE for label in labels):
        return []
    return [{"input_ids": np.array(ids), "labels": np.array(labels)}]


def _pair(e: RowEncoder, row: Row) -> list[Example]:
    source_text, target_text = (str(row[name]) for name in e.columns)
    source = whole(e.model.tokenizer, source_text, e.limit, ends=True, closed=True)
    target = whole(e.model.tokenizer, target_text, e.limit, ends=True)
    return [teacher_forced(np.array(source), np.array(target), e.model.begin_id)]


def teacher_forced(source: np.ndarray, target: np.ndarray, begin_id: int) -> Example:
    """Inputs and labels of an encoder-decoder, by teacher forcing."""
    return {"input_ids": source, "decoder_input_ids": np.append(begin_id, target[:-1]), "labels": target}


def _classified(e: RowEncoder, row: Row) -> list[Example]:
    ids = np.array(whole(e.model.tokenizer, str(row["text"]), e.limit))
    return [{"input_ids": ids, "labels": np.array(e.place(row["label"]))}]


def _embedded(e: RowEncoder, row: Row) -> list[Example]:
    number = _number(str(row["anchor"]))  # pairs of one anchor are not each other's negatives
    texts = (whole(e.model.tokenizer, str(row[name]), e.limit) for name in e.columns)
    return [{"input_ids": np.array(ids), "labels": number} for ids in texts]


def _tagged(e: RowEncoder, row: Row) -> list[Example]:
    """The first token of each word has its label."""
    t, words, names = e.model.tokenizer, row["words"], row["labels"]
    if len(words) != len(names):
        raise ValueError(f"it has {len(words)} words and {len(names)} labels: {' '.join(map(str, words))[:60]!r}")
    ids, places = of_words(t, [str(word) for word in words])
    labels = [IGNORE] * len(ids)
    for place, label in zip(places, map(e.place, names), strict=True):
        if place is not None:
            labels[place] = label
    cut = min(len(ids), e.limit) - 1  # the last token closes the text
    return [{"input_ids": np.array([*ids[:cut], ids[-1]]), "labels": np.array([*labels[:cut], IGNORE])}]


def _pictured(e: RowEncoder, row: Row) -> list[Example]:
    """The image as its file holds it, or the name of that file: it is decoded when a batch needs it."""
    return [{**_kept(e, row["image"]), "labels": np.array(e.place(row["label"]))}]


def _kept(e: RowEncoder, image: Any) -> Example:
    if isinstance(image, str | os.PathLike):
        return {"path": np.frombuffer(os.fsencode(pictures.below(e.root, image)), np.uint8)}
    return {"bytes": np.frombuffer(pictures.content(image), np.uint8)}


def _matched(e: RowEncoder, row: Row) -> list[Example]:
    """The image, the ids of the text, and its number: rows of one text are not each other's negatives."""
    text = str(row["text"])
    ids = np.array(whole(e.model.tokenizer, text, e.limit))
    return [{**_kept(e, row["image"]), "input_ids": ids, "labels": _number(text)}]


def _drawn(e: RowEncoder, row: Row) -> list[Example]:
    return [_kept(e, row["image"])] if e.columns == ("image",) else _sounded(e, row)


def _heard(e: RowEncoder, row: Row) -> list[Example]:
    """The name of the file, which is read when a batch needs it, and the symbols of the text."""
    path = pictures.below(e.root, row["sound"], "sound")
    named = np.frombuffer(os.fsencode(path), np.uint8)
    return [{"path": named, "labels": sounds.labelled(e.model, path, str(row["text"]))}]


def _sounded(e: RowEncoder, row: Row) -> list[Example]:
    """The name of the file, and for units the cluster of each frame."""
    path = pictures.below(e.root, row["sound"], "sound")
    if sounds.frames(e.model, path) < 1:
        raise ValueError(f"{path} is shorter than one frame of the model; leave it out")
    named = {"path": np.frombuffer(os.fsencode(path), np.uint8)}
    return [named if e.units is None else {**named, "labels": e.units.labels(path)}]


def _painted(e: RowEncoder, row: Row) -> list[Example]:
    return _matched(e, row) if e.tokenized else _pictured(e, row)


def _captioned(e: RowEncoder, row: Row) -> list[Example]:
    """The picture, its placeholders, and a text of which the caption or the answer is counted."""
    mark, t = placeholder(e.model), e.model.tokenizer
    said = [str(row[name]) for name in e.columns[1:]]
    if any(mark in text for text in said):
        raise ValueError(f"the text holds {mark}, which stands for the picture; the picture comes first, without it")
    if len(said) == 2 and t.template is not None:
        asked = {"role": "user", "content": spoken(t, mark, said[0])}
        text, spans = _spoken(t, {"messages": [asked, {"role": "assistant", "content": said[1]}]}, "messages")
        ids, counted = marked(t, text, spans, closed=True)
    else:
        before = "\n".join([mark, *said[:-1], ""])
        ids, counted = marked(t, before + said[-1], [(len(before), len(before) + len(said[-1]))], closed=False)
    token = seen_by(e.model).token
    size = e.taken(row["image"])
    counts = [size if i == token else 1 for i in ids]
    counted = [v for v, n in zip(counted, counts, strict=True) for _ in range(n)]
    ids = [v for v, n in zip(ids, counts, strict=True) for _ in range(n)]
    if e.limit <= (most := len(ids) - ids[::-1].index(token)):
        raise ValueError(f"the picture ends at token {most}, and an example has {e.limit} tokens; see context")
    ids, labels = shifted(ids, counted, e.limit)
    return [{**_kept(e, row["image"]), "input_ids": np.array(ids), "labels": np.array(labels)}]


def _composed(e: RowEncoder, row: Row) -> list[Example]:
    return [composing.composed(e.model, row, e.columns, e.root)]


def _staged(e: RowEncoder, row: Row) -> list[Example]:
    return [composing.staged(e.model, row, e.columns, e.root, e.codec)]


def _answered(e: RowEncoder, row: Row) -> list[Example]:
    return [{**asked(e.model, row, 0, e.limit), "labels": np.array(e.place(row["label"]))}]


def _number(text: str) -> np.ndarray:
    """Equal for equal texts: a hash, of 31 bits."""
    return np.array(zlib.crc32(text.encode("utf-8", "replace")) >> 1)


_ENCODERS: dict[str, Callable[[RowEncoder, Row], list[Example]]] = {
    "write": _written, "seq2seq": _pair, "classify": _classified, "embed": _embedded, "tag": _tagged,
    "images": _pictured, "match": _matched, "caption": _captioned, "paint": _painted, "draw": _matched,
    "answer": _answered, "ctc": _heard, "contrast": _sounded, "units": _sounded, "reconstruct": _drawn,
    "compose": _composed, "stage": _staged,
}  # fmt: skip


def whole(tokenizer: Any, text: str, limit: int, ends: bool = False, closed: bool | None = None) -> list[int]:
    """The ids of a text as its model reads it (`hub.text.reading`), cut at `limit`.

    Args:
        ends: it is a source or a target. closed: the tokens that close every text stay when it is cut; by default if it
            does not end: a target that is cut must not teach to stop there.
    """
    encoded = reading(tokenizer, text, ends)
    if not encoded.ids:
        raise ValueError(f"the text {text!r:.60} has no tokens")
    return encoded.cut(limit, not ends if closed is None else closed)


def written(tokenizer: Any, row: Row, which: str, limit: int) -> tuple[list[int], list[int]]:
    """The ids of an example to write and their labels: the next token where it is counted, else -100. Cut at `limit`.

    A conversation goes through the tokenizer's chat template; without one, a prompt is followed by a line break, the
    response, and the end token.
    """
    text, spans = _spoken(tokenizer, row, which)
    if which == "text":
        encoded = tokenizer.core.encode(text)
        ids, counted = list(encoded.ids), [any(a <= s < b for a, b in spans) for s, _ in encoded.offsets]
        ends = tokenizer.role_id("eos_token")
        if ends is not None and ids[-1:] != [ends]:
            ids, counted = [*ids, ends], [*counted, True]
    else:
        ids, counted = marked(tokenizer, text, spans, closed=tokenizer.template is not None)
    return shifted(ids, counted, limit)


def marked(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], closed: bool) -> tuple[list[int], list[bool]]:
    """The ids of a text, and which of them are learned: those that begin inside the spans (of characters).

    Args:
        closed: the text has its own begin and end, as a chat template writes them; else they are put around it, and
            the end is learned.
    """
    encoded = tokenizer.core.encode(text, add_special_tokens=False)
    ids, counted = list(encoded.ids), [any(a <= s < b for a, b in spans) for s, _ in encoded.offsets]
    if not closed:
        ends = tokenizer.role_id("eos_token")
        if ends is not None and ids[-1:] != [ends]:
            ids, counted = [*ids, ends], [*counted, True]
        if (begin := tokenizer.bos_id) is not None and begin != ends:
            ids, counted = [begin, *ids], [False, *counted]
    return ids, counted


def shifted(ids: list[int], counted: list[bool], limit: int) -> tuple[list[int], list[int]]:
    """The first `limit` ids, and the next one as label of each, where it is learned."""
    ids, counted = ids[:limit], counted[:limit]
    labels = [i if c else IGNORE for i, c in zip(ids[1:], counted[1:], strict=True)] + [IGNORE]
    return ids, labels


def _spoken(tokenizer: Any, row: Row, which: str) -> tuple[str, list[tuple[int, int]]]:
    """The text, and from where to where it is learned (in characters)."""
    if which == "text":
        return str(row["text"]), [(0, len(str(row["text"])))]
    prompted, answered = ("source", "target") if which == "source" else ("prompt", "response")
    if which != "messages" and tokenizer.template is None:
        prompt, response = str(row[prompted]).rstrip("\n") + "\n", str(row[answered])
        return prompt + response, [(len(prompt), len(prompt) + len(response))]
    messages = row["messages"] if which == "messages" else [
        {"role": "user", "content": str(row[prompted])}, {"role": "assistant", "content": str(row[answered])},
    ]  # fmt: skip
    spans = []
    for i, message in enumerate(messages):
        if isinstance(message, dict) and message.get("content") is None and not message.get("tool_calls"):
            raise ValueError(f"message {i + 1}, of {message.get('role')!r}, has no content (null); add a text")
        if isinstance(message, dict) and message.get("role") == "assistant":
            before = tokenizer.chat(messages[:i]) if i else ""
            after = tokenizer.chat(messages[: i + 1], add_generation_prompt=False)
            if not after.startswith(before):
                raise ValueError(
                    "this chat template rewrites earlier messages after an answer, so the assistant's tokens are "
                    f"unknown: {after[-60:]!r} does not continue {before[-60:]!r}; write prompt and response as `text`"
                )
            spans.append((len(before), len(after.rstrip())))
    if not spans:
        raise ValueError(f"no message of the assistant, so no token has a label: {messages!r:.80}")
    return tokenizer.chat(messages, add_generation_prompt=False), spans
