"""The base of all processors, and their origin in a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor

from anyformer.hub.tables.config import Lens, Line, read, write

ALONE, TOGETHER = "preprocessor_config.json", "processor_config.json"


@dataclass(frozen=True)
class Origin:
    """The file from which a processor was read.

    Attributes:
        file: its name. around: the content of processor_config.json beside the steps. words: the steps.
        lines: of the ledger, for each key.
    """

    file: str = ALONE
    around: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()


class Processor(ABC):
    """The conversion of a medium to a model's inputs, as a tokenizer converts text to ids.

    Attributes:
        takes: the inputs that it makes. slot: its place in processor_config.json.
        entries: of its file, where it has but one kind of them.
    """

    takes: ClassVar[tuple[str, ...]]
    slot: ClassVar[str]
    entries: ClassVar[tuple[Lens, ...]] = ()
    origin: Origin

    @abstractmethod
    def __call__(self, media: Any) -> dict[str, Tensor]:
        """One or several of the medium to the model's inputs by name."""

    def ledger(self) -> dict[str, list[Line]]:
        """The lines of the ledger, by the file that was read."""
        return {self.origin.file: list(self.origin.lines)}

    @classmethod
    def read(cls, content: Mapping[str, Any], kind: str | None, ignore: Collection[str]) -> tuple[Self, list[Line]]:
        """The processor of these steps, and a line of the ledger for each key.

        Args:
            kind: the type of old files that name none.
            ignore: keys that are passed over.
        """
        return read(cls.entries, content, cls, {}, ignore)

    def words(self) -> dict[str, Any]:
        """The steps as keys of a file."""
        return write(self.entries, self, {"origin": self.origin}, self.origin.words)


def listed(media: Any) -> list[Any]:
    """The sounds of a call: one, or those of a list.

    Raises:
        ValueError: for an empty list.
    """
    several = media if isinstance(media, list) else [media]
    if not several:
        raise ValueError("there are no sounds: the list is empty")
    return several
