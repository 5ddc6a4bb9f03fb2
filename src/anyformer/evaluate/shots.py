"""Examples in front of an item (k-shot prompts), drawn for each item by the seed and the item's own text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from anyformer.evaluate.items import Item


@dataclass(frozen=True)
class Form:
    """The text of a prompt.

    ```
    template(example 1) separator answer, an empty line, template(example 2) … template(item)
    ```

    Args:
        pool: the examples; none is shown to an item with the same question. count: k.
        template: {text} stands for the text of an item. separator: in front of an answer.

    Raises:
        ValueError: for a template without {text}, or fewer than k examples that differ.
    """

    template: str = "{text}"
    separator: str = " "
    count: int = 0
    seed: int = 0
    pool: Sequence[Item] = ()
    unique: dict[str, Item] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if "{text}" not in self.template:
            raise ValueError(f"template is {self.template!r}; it needs {{text}}, where the text of the item stands")
        if self.count < 0:
            raise ValueError(f"shots must be 0 or more, got {self.count}")
        self.unique.update({item.key: item for item in reversed(self.pool) if self.shown(item)})

    @staticmethod
    def shown(item: Item) -> bool:
        """True for an item whose right answer is known."""
        return item.gold is not None or item.label is not None or bool(item.answers)

    def examples(self, item: Item) -> list[Item]:
        """The k examples of an item."""
        others = [key for key in self.unique if key != item.key]
        if len(others) < self.count:
            raise ValueError(
                f"{item.where}: {self.count} shots need as many examples, and there are {len(others)} that differ from "
                "the item; give more with --from, or fewer --shots"
            )
        drawn = random.Random(f"{self.seed} {item.key}").sample(sorted(others), self.count) if self.count else []
        return [self.unique[key] for key in drawn]

    def prompt(self, item: Item) -> str:
        """The whole text in front of the answer."""
        parts = [self._asked(example) + self.separator + example.right for example in self.examples(item)]
        return "\n\n".join([*parts, self._asked(item)])

    def _asked(self, item: Item) -> str:
        return self.template.replace("{text}", item.text)

    def notes(self, items: Sequence[Item], own: bool) -> list[str]:
        """Notes of the questions that stand twice.

        Args:
            own: the examples come from the file that is measured.
        """
        if not self.count:
            return []
        keys = {item.key for item in items}
        same = sum(key in keys for key in self.unique)
        made = ["examples come from the same file, without the item itself; --from gives others"] if own else []
        if same and not own:
            made.append(f"{same} of {len(self.unique)} examples are also items: none is shown to its own item")
        if len(self.pool) > len(self.unique):
            made.append(f"{len(self.pool) - len(self.unique)} of {len(self.pool)} examples repeat another one")
        return made

    def facts(self) -> dict[str, Any]:
        """For the result."""
        return {"shots": self.count, "seed": self.seed, "template": self.template, "separator": self.separator}
