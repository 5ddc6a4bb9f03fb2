"""Two towers. B rows, T time, E width of their vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.front import Entrance
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.skeletons.base import Output, Skeleton

HOTTEST = 100.0  # the largest scale in training: beyond it the published runs were unstable


class DualTower(Skeleton, Part):
    """A model for each of two media, with similar vectors for matching pairs (CLIP).

    ```
    pixel_values (B, C, height, width) -> towers.image -> vector / length  (B, E) ──┐
                                                                                   × -> exp(scale) * image textᵀ (B, B)
    input_ids (B', T)                  -> towers.text  -> vector / length  (B', E) ─┘
    ```
    `heads` of the output are both vectors by the towers' names, of length 1, and `scale`, a number. `logits` has a row
    for each row of the first tower and a column for each of the second: it is *across* rows, and so is `scale`. One
    medium alone: `model.vectors("image", pixel_values=…)`.

    Args:
        towers: name to a model whose first head gives a vector of E numbers; two, each with inputs of its own.
        scale: the initial value, as a logarithm; in training it stays below log 100.
    """

    alike = True
    across = frozenset({"logits", "heads.scale"})

    def __init__(self, towers: dict[str, Recipe], scale: float = 2.6592):
        super().__init__()
        if len(towers) != 2:
            raise ValueError(f"DualTower has two towers, got {', '.join(towers) or 'none'}")
        self.towers = nn.ModuleDict({name: tower.build() for name, tower in towers.items()})
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.first = float(scale)
        self.context = next((t.context for t in self.models() if t.context is not None), None)

    def models(self) -> list[Any]:
        """The towers, in their order."""
        return list(self.towers.values())

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, self.first)

    def entrances(self) -> tuple[Entrance, ...]:
        return tuple(entrance for tower in self.models() for entrance in tower.entrances())

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        for tower in self.models():
            inputs = tower.complete(inputs)
        return inputs

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **inputs: Tensor | None,
    ) -> Output:
        """The inputs of both towers, by name (`model.inputs()`), to an Output.

        Raises:
            ValueError: for an input that no tower reads, or a missing one.
        """
        present = self.check_inputs({"input_ids": input_ids, "attention_mask": attention_mask, **inputs})
        outs = {name: self._run(name, present) for name in self.towers}
        first, second = (self._vector(out) for out in outs.values())
        scale = self.scale.exp()
        heads = dict(zip(outs, (first, second), strict=True)) | {"scale": scale}
        out = Output(None, scale * first @ second.mT, heads, across=self.across)
        for tower in outs.values():
            for loss, value in tower.aux.items():
                out.aux[loss] = out.aux[loss] + value if loss in out.aux else value
            for figure, values in tower.figures.items():
                out.figures.setdefault(figure, []).extend(values)
        return out

    def tower(self, reads: str) -> str:
        """The name of the tower that reads an input."""
        return next(name for name, model in zip(self.towers, self.models(), strict=True) if reads in model.inputs())

    def vectors(self, tower: str, **inputs: Tensor) -> Tensor:
        """The vectors of one medium, (B, E), of length 1."""
        return self._vector(self._run(tower, inputs))

    def bound(self) -> None:
        """Keeps the scale below its limit, after each update."""
        with torch.no_grad():
            self.scale.clamp_(max=torch.tensor(HOTTEST).log().item())

    def _run(self, name: str, inputs: dict[str, Tensor]) -> Output:
        tower: Any = self.towers[name]
        return tower(**{n: value for n, value in inputs.items() if n in tower.inputs()})

    def _vector(self, out: Output) -> Tensor:
        assert out.logits is not None, "a tower must end in a head"
        return F.normalize(out.logits, dim=-1)
