"""The tasks compose and stage: decoders learn to write the codes of sounds. B rows, T frames, Q books, L steps of the
decoder.

    loss = - mean over codes of log p(code | text, codes before it)

compose (MusicGen): as many frames as the context holds, from a place on, laid out by the model's pattern. stage (one
stage of MusicLM): the segments of its layout, one behind the other; a row is learned whole.

Codes are those of rows, or a codec that learned before makes them of sounds, once, when rows are encoded. The place of
a window, and whether it is without its text, are drawn for the number of the example: they depend neither on the cut
of a step into batches nor on the number of processes, and a run that resumes draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.core import hyper
from anyformer.data.batches import Batch
from anyformer.data.labels import IGNORE
from anyformer.data.models import find
from anyformer.data.order import Rows
from anyformer.data.pictures import below
from anyformer.data.records import Row
from anyformer.data.store import Example
from anyformer.generate import recoding
from anyformer.generate.cascade import check_codec
from anyformer.generate.composing import codec_of, codes_of_sound
from anyformer.hub import load
from anyformer.hub.text.reading import reading

DROPPED = 0.1  # the share of examples without their text, so that guidance has something to compare with
TASKS = ("compose", "stage")


def codec_at(place: str | Path | None) -> Any:
    """The codec of a directory, or of the last checkpoint of a run; None without one.

    Raises:
        ValueError: for another model.
    """
    if place is None:
        return None
    codec = load(find(str(place)))
    recoding.processor_of(codec)
    return codec.eval()


def implied(task: str, codec: Any, columns: Sequence[str], rows: Callable[[], Iterator[Row]]) -> dict[str, Any]:
    """The hyperparameters of a new model for such rows.

    Args:
        codec: of its codes, or None: rows have them. rows: reads the column of codes.
    """
    if task == "stage":
        return {} if codec is None else {"codes": codec.codes.vocab}
    made: dict[str, Any] = {} if "text" in columns else {"text": None}
    if codec is not None:
        books, vocab = len(codec.codes.books), codec.codes.vocab
        if codec.page == "encodec":
            made |= {f"codec.{name}": value for name, value in hyper.leaves(codec.config).items()}
        else:
            made |= {"codec": None}
    elif "codes" in columns:
        every = [_given(row["codes"]) for row in rows()]
        books, vocab = every[0].shape[1], 1 + max(int(codes.max()) for codes in every)
        made |= {"codec": None}
    else:
        return made
    return {**made, "writer.vocab": vocab, "writer.books": books}


def with_codec(model: Any, codec: Any, columns: Sequence[str]) -> Any:
    """The decoder with the codec of its codes, which is saved with it, and frozen.

    Args:
        codec: one to keep, or None where the model has its own, or none and rows have codes.

    Raises:
        ValueError: if sounds have no codec, or the model has another one, or its codes do not fit.
    """
    new = model.ledger is None
    if "sound" in columns and codec is None and (model.codec is None or new):
        raise ValueError(
            f"{model.page or 'the model'} writes codes of sounds, and whose codes is not said: train a codec "
            "(anyformer train --model encodec --data sounds --out runs/codec), then --codes runs/codec"
        )
    if codec is not None:
        if model.codec is None:
            model.recipe = model.recipe.but({"codec": codec.recipe})
            model.codec, model.page, model.config = codec, None, None
        elif new and model.codec.recipe == codec.recipe:
            model.codec.load_state_dict(codec.state_dict())
        elif recoding.digest(model.codec) != recoding.digest(codec):
            raise ValueError("the model has a codec of its own, and codes names another one; leave codes out")
        model.processor = model.processor or codec.processor
    if model.codec is not None:
        codec_of(model)
        model.codec.to(next(model.parameters()).device).requires_grad_(False)
    return model


def composed(model: Any, row: Row, columns: Sequence[str], root: Path) -> Example:
    """The codes of a row, frame by frame (T Q,), and the ids of its text.

    Raises:
        ValueError: for codes that the model does not say.
    """
    books, vocab = len(model.head.books), model.embed.pad
    if "sound" in columns:
        codes = codes_of_sound(codec_of(model), str(below(root, row["sound"], "sound")), books, model.stereo)[0].numpy()
    else:
        codes = _coded(row["codes"], root, model.codec)
    _check(codes, books, vocab, exactly=True)
    made = {"codes": codes.ravel()}
    if model.encoder is not None and "text" in columns:
        made["input_ids"] = np.array(reading(model.tokenizer, str(row["text"]), ends=True).ids)
    return made


def staged(model: Any, row: Row, columns: Sequence[str], root: Path, codec: Any) -> Example:
    """The ids of the segments of a row, and the next one as label of each where it is of the last segment.

    Raises:
        ValueError: for a column that the stage needs, codes outside its books, or more ids than its context.
    """
    layout, given = model.layout, dict[str, torch.Tensor]()
    for name in layout.segments:
        if name == "text":
            given[name] = torch.tensor([reading(model.tokenizer, str(row["text"]), ends=True).ids])
        elif name == "semantic":
            given[name] = torch.from_numpy(_given([[code] for code in row["semantic"]]))[None]
        else:
            given[name] = _part(layout, name, row, columns, root, codec)
    ids = layout.row(given)[0].numpy()
    if model.context is not None and len(ids) - 1 > model.context:
        raise ValueError(
            f"the stage {layout.stage} has {len(ids) - 1} ids in this row, and its context is {model.context}; cut the "
            "sound into shorter ones, or build the model with a longer context"
        )
    last = int((ids == layout.mark(layout.segments[-1])).nonzero()[0][-1])  # the mark of what is written
    labels = np.where(np.arange(1, len(ids)) > last, ids[1:], IGNORE)
    return {"input_ids": ids[:-1], "labels": labels}


def _part(layout: Any, name: str, row: Row, columns: Sequence[str], root: Path, codec: Any) -> torch.Tensor:
    """The coarse or the fine books of a row, (1, T, Q)."""
    if "sound" in columns:
        if codec is None:
            raise ValueError("whose codes a sound has is not said: --codes runs/codec, the run of a codec")
        check_codec(codec, layout)
        codes = recoding.encode(codec, str(below(root, row["sound"], "sound"))).codes[0].cpu().numpy()
    elif "codes" in columns:
        codes = _coded(row["codes"], root, codec)
    else:
        raise ValueError(f"the stage {layout.stage} learns from codes of a codec; give rows 'sound' or 'codes', too")
    first = 0 if name == "coarse" else layout.coarse
    _check(codes, first + layout.books(name), layout.codes, exactly=False)
    return torch.from_numpy(codes[None, :, first : first + layout.books(name)])


def _coded(value: Any, root: Path, codec: Any) -> np.ndarray:
    """Codes of a row, (T, Q): a list of frames, or the name of a file of `reconstruct`."""
    if not isinstance(value, str):
        return _given(value)
    if codec is None:
        raise ValueError(f"{value} holds codes of a codec, and whose is not said: --codes runs/codec")
    return recoding.kept(below(root, value, "codes"), codec).codes[0].numpy()


def _given(value: Any) -> np.ndarray:
    """A list of frames, each a list of codes, as (T, Q).

    Raises:
        ValueError: for anything else.
    """
    try:
        codes = np.array(value)
    except ValueError:  # frames of different lengths
        codes = np.array(None)
    if codes.ndim != 2 or codes.dtype.kind not in "iu" or not codes.size or codes.min() < 0:
        raise ValueError(f"codes must be a list of frames, each a code of each book, from 0 on; got {value!r:.60}")
    return codes.astype(np.int64)


def _check(codes: np.ndarray, books: int, vocab: int, exactly: bool) -> None:
    """Raises ValueError for codes of other books."""
    if codes.shape[1] < books or (exactly and codes.shape[1] != books) or codes.max() >= vocab:
        raise ValueError(
            f"the model says {books} books of {vocab} codes, and the row has {codes.shape[1]} with codes up to "
            f"{codes.max()}"
        )


def fingerprint(model: Any, codec: Any) -> list[str]:
    """The things beside its content that decide the codes of a row."""
    own = getattr(model, "codec", None) or codec
    layout = getattr(model, "layout", None)
    shape = layout or (len(model.head.books), model.embed.pad, model.stereo, model.encoder is None)
    return [repr(shape), "" if own is None else recoding.digest(own)]


@dataclass(frozen=True, eq=False)
class Composed:
    """Rows of codes and texts as steps of a decoder; labels (B, L, Q) are its codes, -100 where a book has none.

    Args:
        source: rows with codes (B, T Q), and input_ids of the text. frames: the most.
        learns: windows begin anywhere, and a tenth is without its text; else they are the first frames.
    """

    source: Rows
    model: Any
    frames: int
    seed: int
    learns: bool = True

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        return self.laid(self.source.rows(first, count), first)

    def laid(self, batch: Batch, first: int) -> Batch:
        """A batch whose rows have the numbers from `first` on."""
        m = self.model
        codes = batch["codes"].unflatten(1, (-1, len(m.head.books)))  # (B, T, Q)
        counts = (codes[..., 0] != IGNORE).sum(1).tolist()
        cut = codes.new_full((len(codes), min(self.frames, max(counts)), codes.shape[2]), IGNORE)
        told = torch.ones(len(codes), 1, dtype=torch.long)
        for row, count in enumerate(counts):
            draw, width = np.random.default_rng((self.seed, first + row)), min(self.frames, count)
            at = int(draw.integers(count - width + 1)) if self.learns else 0
            cut[row, :width] = codes[row, at : at + width]
            told[row] = not (self.learns and draw.random() < DROPPED)
        labels = m.pattern.laid(cut, IGNORE)  # (B, L, Q)
        before = torch.cat((torch.full_like(labels[:, :1], IGNORE), labels[:, :-1]), 1)
        made = {f"{m.target}input_ids": before.masked_fill(before == IGNORE, m.embed.pad), "labels": labels}
        if m.encoder is not None:
            made["input_ids"] = ids = batch.get("input_ids", torch.zeros_like(told))
            there = batch.get("attention_mask", torch.ones_like(ids)) if "input_ids" in batch else torch.zeros_like(ids)
            made["attention_mask"] = there * told
        return made


def prepared(
    rows: Rows, held_out: Callable[[int], Iterator[Batch]], model: Any, steps: int | None, seed: int
) -> tuple[Rows, Callable[[int], Iterator[Batch]]]:
    """Rows to learn from, and held-out batches, all with their texts.

    Args:
        steps: of the decoder in a window; None: all frames of a row.

    Raises:
        ValueError: for fewer steps than a frame has.
    """
    books = len(model.head.books)
    one, two = (model.pattern.steps(frames, books) for frames in (1, 2))
    frames = 1 << 30 if steps is None else (steps - one) // (two - one) + 1
    if frames < 1:
        raise ValueError(f"context={steps}: a frame alone takes {one} steps of the decoder; give it more")
    measured = Composed(rows, model, frames, seed, learns=False)
    return Composed(rows, model, frames, seed), lambda batch: (measured.laid(some, 0) for some in held_out(batch))


def steps_of(model: Any, context: int | None) -> int | None:
    """The steps of the decoder in a window: `context`, else those of the model.

    Raises:
        ValueError: for more than the model can read.
    """
    if context is not None and model.context is not None and context > model.context:
        raise ValueError(f"context={context} steps are more than the model's {model.context}")
    return context or model.context
