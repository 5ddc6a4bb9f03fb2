"""Models that take noise out of pictures. B batch, T cells of a grid, S positions of a text, D width, C channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core import checks
from anyformer.core.flow import Flow
from anyformer.core.front import Entrance, Inputs
from anyformer.core.part import built
from anyformer.core.recipe import Recipe
from anyformer.parts.adaptive import Told
from anyformer.parts.conditions import Condition, States
from anyformer.parts.embeddings import Pictures
from anyformer.parts.heads import Unpatch
from anyformer.parts.streams import joined
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.stack import Blocks


class Denoiser(Skeleton, Blocks):
    """A model that says which noise is in a picture, or how the picture moves on its way to noise (DiT).

    ```
    timestep (B,), class_labels (B,) … ─ conditions, summed ──────────┐ told (B, D)
    pixel_values (B, C, height, width) ── embed ──┬── block x N ── norm ── head ── noise (B, C', height, width)
    encoder_hidden_states (B, S, E) ───── text ───┘
    ```
    Args:
        dim: width of the stream.
        embed: front-end of whole patches, `PatchGrid.of(...)`.
        conditions: name to recipe: `Time.of()`, `Label.of(classes=10)`.
        blocks: one recipe a layer, which read what they are told.
        head: from patches to pixels, `Unpatch.of(...)`, with the last norm.
        text: a second stream, behind the patches in one sequence, `States.of(width=...)`; None: there is none.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[Pictures],
        conditions: Mapping[str, Recipe[Condition]],
        blocks: Any,
        head: Recipe[Unpatch],
        text: Recipe[States] | None = None,
    ):
        super().__init__(dim, blocks)
        self.embed, self.text = embed.build(dim), built(text, dim)
        self.conditions: Any = nn.ModuleDict({name: condition.build(dim) for name, condition in conditions.items()})
        self.heads = nn.ModuleDict({"noise": head.build(dim)})

    def entrances(self) -> tuple[Entrance, ...]:
        told = map(Entrance, self.conditions.values())
        return (Entrance(self.embed), *told, *([] if self.text is None else [self._text]))

    @property
    def _text(self) -> Entrance:
        return Entrance(self.text, "encoder_")

    def forward(self, **inputs: Tensor | None) -> Output:
        """The inputs by name (`model.inputs()`) to an Output, whose `logits` are the noise, as large as the picture.

        Raises:
            ValueError: for an input that no part reads, a missing one, rows that differ in number, or a picture that is
                no whole number of patches.
        """
        present = self.check_inputs(inputs)
        tensors, flow = self.begin(Entrance(self.embed), present)
        height, width = tensors["pixel_values"].shape[2:]
        if height % self.embed.patch or width % self.embed.patch:
            raise ValueError(
                f"pixel_values of {height} x {width} pixels are no whole number of patches of {self.embed.patch}"
            )
        flow.put(Told(self._told(present, flow, tensors["pixel_values"].shape[0])))
        x = embed_inputs(self.embed, tensors, flow)  # (B, T, D)
        if self.text is not None:
            x, flow = self._joined(x, present, flow)  # (B, T + S, D)
        x, flow = self.run(x, flow)
        noise = self.heads["noise"](x, flow)
        return Output(x, noise, {"noise": noise}, aux=flow.aux, figures=flow.figures)

    def _joined(self, x: Tensor, present: Inputs, flow: Flow) -> tuple[Tensor, Flow]:
        given = self._text.given(present)
        count, mask = self.text.length(given), given.get("attention_mask")
        self._check_rows("encoder_hidden_states", given["hidden_states"].shape[0], x.shape[0])
        keep = None
        if mask is not None:
            keep = checks.attention_mask(mask, x.shape[0], (count,), "encoder_attention_mask")
        return joined(x, self.text(given, flow), flow, keep)

    def _told(self, present: Inputs, flow: Flow, rows: int) -> Tensor:
        vectors = []
        for condition in self.conditions.values():
            given = Entrance(condition).given(present)
            self._check_rows(condition.main, given[condition.main].shape[0], rows)
            vectors.append(embed_inputs(condition, given, flow)[:, 0])
        return torch.stack(vectors).sum(0)

    def _check_rows(self, name: str, count: int, rows: int) -> None:
        if isinstance(count, int) and isinstance(rows, int) and count != rows:  # torch.export has symbols, alike
            raise ValueError(f"{name} has {count} rows, the picture {rows}")
