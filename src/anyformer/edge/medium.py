"""The medium of a task's rows: what they are kept as, and how they become the inputs that a front-end declares.

| a front-end reads | column | a row is kept as | beside the graph |
|---|---|---|---|
| ids | text | str | tokenizer.json |
| pixel_values | image | uint8 (C, S, S) | preprocessor_config.json |
| input_values, input_features | sound | log-mels (M, F) | preprocessor_config.json |
| ids, of a decoder | text | uint8 (T + 1), bytes (`edge.running`) | |

`edge.running.reading` chooses by the declaration of the recipe's front-end. B rows of a batch, T tokens, C channels,
S pixels, M mels, F frames.
"""

from __future__ import annotations

import functools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from anyformer.core.recipe import Recipe
from anyformer.data import files
from anyformer.data.batches import filled
from anyformer.data.pictures import below
from anyformer.data.records import KINDS, find, records
from anyformer.data.tables import classes
from anyformer.edge.pieces import tokenizers
from anyformer.hub.processors.images import ImageProcessor
from anyformer.hub.processors.sounds import SoundProcessor
from anyformer.hub.text.reading import reading as read_text
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.media.picture import picture
from anyformer.media.sound import length, sound
from anyformer.media.steps import table
from anyformer.parts import Mels

ODD = (1, 3, 17, 33, 63)  # tokens of the texts, or rows of the batches, on which a file is compared
BICUBIC = 3  # Pillow's number
LOUD = 0.15  # first deviation of the weights of a front-end of sounds
MELS, RATES = 40, (8000, 16000)  # of a frame of sound; samples a second: the filters end at 8000 Hz


@dataclass
class Part:
    """Some rows, and their labels (N,), classes as numbers, or scores of mean 0 and deviation 1. `soft`: what a teacher
    says, (N, C) or (N, 1); None without one. Rows beyond the labels are a teacher's alone."""

    items: Any  # a list of texts, or an array of pictures or of features of sounds
    labels: Tensor
    soft: Tensor | None = None
    ids: dict[int, list[list[int]]] = field(default_factory=dict)  # of texts, by vocabulary

    def first(self, count: int) -> Part:
        """The first rows."""
        return Part(self.items[:count], self.labels[:count], None, {v: rows[:count] for v, rows in self.ids.items()})

    def forget(self) -> None:
        """Leaves the rows with a label, without a teacher's scores."""
        count = len(self.labels)
        self.items, self.soft = self.items[:count], None
        self.ids = {v: rows[:count] for v, rows in self.ids.items()}


class Medium(ABC):
    """Base of the media.

    Attributes:
        name: of several rows. script: that runs a file. looked: the most rows on which models are compared on the way.
        labelled: rows have labels; else a row is what follows from what is before it.
    """

    name: ClassVar[str]
    script: ClassVar[Path]
    labelled: ClassVar[bool] = True
    looked: int = 600

    @abstractmethod
    def rows(self, file: str | Path) -> Iterator[tuple[Any, Any]]:
        """Each row's content and its label.

        Raises:
            ValueError, FileNotFoundError: for a file without these.
        """

    def kept(self, items: list[Any]) -> Any:
        """All rows as a part keeps them."""
        return items

    @abstractmethod
    def learned(self, part: Part, vocabs: Sequence[int | None], folder: Path) -> None:
        """Takes what the conversion to inputs needs from the rows that teach; kept in a folder where another run would
        find something else."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The size of one row for people."""

    @property
    def loss(self) -> str:
        """A sentence on what of the rows is not read; "" if all is."""
        return ""

    def fitted(self, base: Recipe[Any]) -> Recipe[Any]:
        """A recipe with a front-end for these rows."""
        return base

    def sizes(self) -> dict[str, int]:
        """The sizes that the rows fix, by paths of a recipe."""
        return {}

    def facts(self) -> dict[str, Any]:
        """The facts that the script needs, for the metadata of a file."""
        return {}

    @abstractmethod
    def batch(self, part: Part, vocab: int | None, rows: Sequence[int]) -> dict[str, Tensor]:
        """The inputs of some rows, by name."""

    def lengths(self, part: Part, vocab: int | None) -> list[int]:
        """The length of each row; rows of about one length go together."""
        return [1] * len(part.items)

    @abstractmethod
    def files(self, vocab: int | None) -> dict[str, bytes]:
        """The files that an artefact has beside its graph and its script."""

    @abstractmethod
    def attach(self, model: Any, vocab: int | None) -> None:
        """Gives a model what makes its inputs, so that it is saved with it."""

    @abstractmethod
    def checks(self, part: Part, vocab: int | None) -> list[dict[str, Tensor]]:
        """Batches of real rows, of odd sizes."""


class Texts(Medium):
    """Texts, read by a WordPiece tokenizer of each size of vocabulary.

    Args:
        tokens: of the longest text; longer ones are cut.

    Attributes:
        source: the tokenizer of a teacher, whose pieces are read if they can be.
    """

    name, script = "texts", Path(__file__).with_name("run.txt")

    def __init__(self, tokens: int):
        self.tokens = tokens
        self.tokenizers: dict[int | None, Tokenizer] = {}
        self.source: Tokenizer | None = None

    def rows(self, file: str | Path) -> Iterator[tuple[str, Any]]:
        return ((str(r["text"]), r["label"]) for r in records(file, None, ("text", "label")))

    def learned(self, part: Part, vocabs: Sequence[int | None], folder: Path) -> None:
        sizes = [v for v in vocabs if v is not None]
        self.tokenizers |= tokenizers(part.items, sizes, folder / "tokenizer.json", self.source)

    @property
    def words(self) -> str:
        return f"{self.tokens} tokens"

    def facts(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def ids(self, part: Part, vocab: int | None) -> list[list[int]]:
        """The ids of each text, at most `tokens`."""
        assert vocab is not None
        if vocab not in part.ids:
            tokenizer = self.tokenizers[vocab]
            part.ids[vocab] = [read_text(tokenizer, text).cut(self.tokens) or [0] for text in part.items]
        return part.ids[vocab]

    def batch(self, part: Part, vocab: int | None, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, padded to the longest, (B, T)."""
        return self._filled([self.ids(part, vocab)[i] for i in rows], vocab)

    def _filled(self, ids: list[list[int]], vocab: int | None) -> dict[str, Tensor]:
        ids_, mask = filled(ids, self.tokenizers[vocab].pad_id)
        return {"input_ids": ids_, "attention_mask": mask}

    def lengths(self, part: Part, vocab: int | None) -> list[int]:
        return [len(ids) for ids in self.ids(part, vocab)]

    def files(self, vocab: int | None) -> dict[str, bytes]:
        return {"tokenizer.json": self.tokenizers[vocab].core.to_str().encode()}

    def attach(self, model: Any, vocab: int | None) -> None:
        model.tokenizer = self.tokenizers[vocab]

    def checks(self, part: Part, vocab: int | None) -> list[dict[str, Tensor]]:
        """Texts of 1, 3, 17, 33 and 63 tokens, each beside a shorter one."""
        ids, batches = sorted(self.ids(part, vocab), key=len)[-3 * len(ODD) :], []
        for n, size in enumerate(s for s in ODD if s <= self.tokens):
            rows = [(row * (1 + size // len(row)))[:size] for row in ids[3 * n : 3 * n + 3]]
            batches.append(self._filled([*rows, ids[0][: min(5, size)]], vocab))
        return batches


class Processed(Medium):
    """Base of the media whose rows a processor reads, which lies beside the graph."""

    processor: Any

    def files(self, vocab: int | None) -> dict[str, bytes]:
        return {self.processor.origin.file: json.dumps(self.processor.words()).encode()}

    def attach(self, model: Any, vocab: int | None) -> None:
        model.processor = self.processor

    def checks(self, part: Part, vocab: int | None) -> list[dict[str, Tensor]]:
        """Batches of 1, 3, 17, 33 and 63 rows."""
        return [self.batch(part, vocab, range(min(size, len(part.items)))) for size in ODD]


class Pictures(Processed):
    """Pictures of one size: squares, in grey if all of them are.

    Args:
        side: height and width in pixels; None: the shorter edge of the first picture.
    """

    name, script = "pictures", Path(__file__).with_name("picture.txt")

    def __init__(self, side: int | None = None):
        self.side, self.channels = side, 3
        self.processor = ImageProcessor(convert_rgb=True)

    def rows(self, file: str | Path) -> Iterator[tuple[np.ndarray, Any]]:
        source = find(file)
        made: Iterable[dict[str, Any]] = records(source, None, () if source.kind == "images" else ("image", "label"))
        for row in made:
            image = row["image"]
            image = picture(below(source.root, image) if isinstance(image, str) else image)
            if self.processor.size is None:
                self.side = self.side or min(image.size)
                self.processor = replace(self.processor, size=(self.side, self.side), resample=BICUBIC)
            yield self.processor.pixels(image), row.get("class", row["label"])

    def kept(self, items: list[np.ndarray]) -> np.ndarray:
        pixels = np.stack(items)  # (N, 3, S, S)
        self.channels = 1 if bool((pixels == pixels[:, :1]).all()) else 3
        return np.ascontiguousarray(pixels[:, : self.channels])

    def learned(self, part: Part, vocabs: Sequence[int | None], folder: Path) -> None:
        """The mean and the deviation of each channel."""
        values, mean, std = np.arange(256) / 255, list[float](), list[float]()
        for channel in range(self.channels):
            counts = np.sum([np.bincount(pixels[channel].ravel(), minlength=256) for pixels in part.items], axis=0)
            share = counts / counts.sum()
            mean.append(round(float(share @ values), 4))
            std.append(max(1e-3, round(float(share @ (values - share @ values) ** 2) ** 0.5, 4)))
        self.processor = replace(
            self.processor, convert_rgb=self.channels == 3, image_mean=tuple(mean), image_std=tuple(std)
        )

    @property
    def words(self) -> str:
        return f"a picture of {self.side} x {self.side}, {'grey' if self.channels == 1 else 'in colours'}"

    def sizes(self) -> dict[str, int]:
        assert self.side is not None
        return {"embed.image": self.side, "embed.channels": self.channels}

    def batch(self, part: Part, vocab: int | None, rows: Sequence[int]) -> dict[str, Tensor]:
        """`pixel_values`, (B, C, S, S), as the processor makes them."""
        made = self.processor
        numbers = table(made.rescale_factor, made.image_mean, made.image_std, self.channels)
        pixels = part.items[list(rows)]
        values = np.stack([numbers[c][pixels[:, c]] for c in range(self.channels)], 1)
        return {"pixel_values": torch.from_numpy(values)}


class Sounds(Processed):
    """Sounds of one length, as the log-mel features of `Mels`; shorter ones have silence behind them.

    Args:
        seconds: of each sound; None: those of the longest, whole ones.
    """

    name, script = "sounds", Path(__file__).with_name("sound.txt")

    def __init__(self, seconds: int | None = None):
        self.seconds, self.count, self.cut = seconds, 0, 0
        self.processor = SoundProcessor(mels=MELS)

    def rows(self, file: str | Path) -> Iterator[tuple[Path, Any]]:
        source = find(file)
        if source.kind == "sounds":
            paths = [path for path in source.files if KINDS.get(files.suffix(path)) == "sounds"]
            return zip(paths, classes(source.root, paths), strict=True)
        made = records(source, None, ("sound", "label"))
        return ((below(source.root, row["sound"], "sound"), row["label"]) for row in made)

    def kept(self, items: list[Path]) -> np.ndarray:
        """The features, (N, M, F), at 16,000 Hz, or at 8,000 where no sound has more."""
        about = [length(path) for path in items]
        rate = RATES[any(rate > RATES[0] for _, rate in about)]
        window = self.seconds or math.ceil(max(frames / rate for frames, rate in about))
        self.count, self.cut = len(items), sum(frames > window * rate for frames, rate in about)
        self.processor = replace(self.processor, rate=rate, hop=rate // 100, size=rate // 40, window=window)
        return np.stack([self._features(path) for path in items])

    def _features(self, path: Path) -> np.ndarray:
        made = self.processor
        samples = sound(path).at(made.rate).samples[: made.samples]
        return made.features(np.pad(samples, (0, made.samples - len(samples)))).numpy()

    def learned(self, part: Part, vocabs: Sequence[int | None], folder: Path) -> None:
        """Nothing: the features of a sound are its own."""

    @property
    def words(self) -> str:
        return f"a sound of {self.processor.window} s at {self.processor.rate:,} Hz"

    @property
    def loss(self) -> str:
        if not self.cut:
            return ""
        return f"{self.cut:,} of {self.count:,} sounds are longer than {self.processor.window} s: their ends are cut"

    def fitted(self, base: Recipe[Any]) -> Recipe[Any]:
        """`Mels`, which tells the places too, for convolutions over samples and the entry behind them: these are most
        of a small model's work and bytes."""
        if base["embed"].part is Mels:
            return base
        made = base.but({"embed": Mels.of(mels=MELS), "entry": None})
        return Recipe(made.part, made.options, functools.partial(_heard, base.draws))

    def sizes(self) -> dict[str, int]:
        return {"embed.mels": self.processor.mels, "embed.context": self.processor.frames // 2}

    def batch(self, part: Part, vocab: int | None, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_features`, (B, M, F), as the processor makes them."""
        return {"input_features": torch.from_numpy(part.items[list(rows)])}


def _heard(own: Callable[[], Mapping[str, Any]] | None) -> dict[str, Any]:
    """First weights with which features are about as large as the places that are added to them: with 0.02 they are a
    fiftieth, and the first steps of a short search hear nothing."""
    return {**(own() if own else {}), "embed.first": LOUD, "embed.second": LOUD}
