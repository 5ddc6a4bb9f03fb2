"""What every processor is, and where it came from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from anyformer.hub.tables.config import Line

ALONE, TOGETHER = "preprocessor_config.json", "processor_config.json"


@dataclass(frozen=True)
class Origin:
    """The file that said a processor.

    Attributes:
        file: its name. around: what it holds beside the steps. words: the steps. lines: what became of each key.
    """

    file: str = ALONE
    around: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()


class Processor(ABC):
    """What stands between a medium and a model's input, as a tokenizer stands between text and ids.

    Attributes:
        takes: the inputs that it makes. slot: its place in processor_config.json.
    """

    takes: ClassVar[tuple[str, ...]]
    slot: ClassVar[str]
    origin: Origin

    @abstractmethod
    def __call__(self, media: Any) -> dict[str, Tensor]:
        """One or several of the medium to the model's inputs by name."""

    @classmethod
    @abstractmethod
    def read(cls, said: Mapping[str, Any], kind: str | None, ignore: Collection[str]) -> tuple[Processor, list[Line]]:
        """The processor that these steps say, and what became of each key.

        Args:
            kind: the type that is meant where old files do not say one.
            ignore: keys that are read as if they were not there.
        """

    @abstractmethod
    def words(self) -> dict[str, Any]:
        """The steps as files say them."""
