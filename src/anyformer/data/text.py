"""Text to token ids, split into what is trained on and what is held out. T tokens of a window, B rows of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.data import sources

HELD_OUT = 0.1  # the share of a text, its end, that is never trained on
HELD_OUT_BYTES = 1_000_000  # a large text holds out no more than this: measuring should stay a matter of seconds
PIECE = 1_000_000  # characters that are tokenised at once


def read(source: str | Path = "pydoc") -> str:
    """The text of a file, of all files in a folder, or of a source that every machine has: "pydoc".

    Files of a folder are sorted by path; hidden ones are left out; an empty line stands between two.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if a file is not UTF-8 (naming it and the byte), or there is no text at all.
    """
    if str(source) == "pydoc" and not Path("pydoc").exists():
        return sources.text("pydoc")
    path = Path(source).expanduser()
    if path.is_dir():
        found = [f for f in sorted(path.rglob("*")) if not any(p.startswith(".") for p in f.relative_to(path).parts)]
        files = [f for f in found if f.is_file()]
    elif path.is_file():
        files = [path]
    else:
        raise FileNotFoundError(f"there is no file or folder {str(source)!r}; the built-in text is data='pydoc'")
    text = "\n\n".join(filter(str.strip, map(_utf8, files)))
    if not text:
        raise ValueError(f"{path} holds no text" + (f" ({len(files)} files)" if path.is_dir() else ""))
    return text


def _utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x} ({error.reason}). "
            f"Leave the file out, or convert it, e.g. iconv -f latin1 -t utf-8 {path.name}"
        ) from None


def split(text: str) -> tuple[str, str]:
    """The text to train on, and what is held out: the last tenth of the characters, at most about `HELD_OUT_BYTES`."""
    cut = max(int(len(text) * (1 - HELD_OUT)), len(text) - HELD_OUT_BYTES)
    return text[:cut], text[cut:]


def tokenise(tokenizer: Any, text: str) -> np.ndarray:
    """The ids of a text as one array, uint16 where they fit, else uint32. Long texts are cut at ends of lines."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    pieces, start = [], 0
    while start < len(text):
        line = text.rfind("\n", start, start + PIECE) + 1
        end = len(text) if len(text) - start <= PIECE else line or start + PIECE
        pieces.append(np.array(tokenizer.encode(text[start:end], special=False), dtype))
        start = end
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as token ids.

    Attributes:
        train: ids to train on, (N,).
        held_out: ids that are never trained on, (M,).
        held_out_bytes: the same in UTF-8.
    """

    train: np.ndarray
    held_out: np.ndarray
    held_out_bytes: int

    @classmethod
    def of(cls, tokenizer: Any, train: str, held_out: str) -> Corpus:
        """Two texts, tokenised."""
        return cls(tokenise(tokenizer, train), tokenise(tokenizer, held_out), len(held_out.encode()))

    def fingerprint(self) -> str:
        """Equal for equal ids: a run that resumes checks that it still reads the same."""
        return hashlib.sha256(self.train.tobytes() + self.held_out.tobytes()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Windows:
    """Random windows of a text: `windows(i)` is batch number i, always the same one.

    Row r of all rows ever drawn begins where a counter-based generator (Philox) says for (seed, r). So there is no
    state to save, and two batches of 8 are one batch of 16.

    Args:
        ids: (N,).
        batch: B. `context`: T.
        seed: of the draw.
    """

    ids: np.ndarray
    batch: int
    context: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if len(self.ids) <= self.context:
            raise ValueError(
                f"the text to train on has {len(self.ids)} tokens, and one window of context={self.context} needs "
                f"{self.context + 1}; give more text or a shorter context"
            )

    def __call__(self, number: int) -> dict[str, Tensor]:
        """input_ids and labels, (B, T) each: the label of a place is the token after it."""
        random = np.random.Philox(key=self.seed, counter=number * self.batch).random_raw(4 * self.batch)[::4]
        starts = (random % np.uint64(len(self.ids) - self.context)).astype(np.int64)  # (B,)
        rows = torch.from_numpy(self.ids[starts[:, None] + np.arange(self.context + 1)].astype(np.int64))  # (B, T + 1)
        return {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}


def sliding(ids: np.ndarray, context: int, batch: int) -> Iterator[dict[str, Tensor]]:
    """Batches in which every token but the first is counted once, and sees at least `context` / 2 tokens before it.

    ```
    counted   ########                       # = T / 2 tokens
              ....####                       . = seen, not counted (label -100)
                  ....####
    ```
    """
    inputs, wanted, stride = ids[:-1].astype(np.int64), ids[1:].astype(np.int64), max(1, context // 2)
    starts = [0, *range(stride, len(inputs) - context + stride, stride)]
    for i in range(0, len(starts), batch):
        rows = starts[i : i + batch]
        x = torch.zeros(len(rows), context, dtype=torch.long)  # (B, T)
        y = torch.full_like(x, -100)
        for row, start in enumerate(rows):
            count = min(context, len(inputs) - start)
            fresh = context - stride if start else 0
            x[row, :count] = torch.from_numpy(inputs[start : start + count])
            y[row, fresh:count] = torch.from_numpy(wanted[start + fresh : start + count])
        yield {"input_ids": x, "labels": y}
