"""Pictures of texts: an encoder of text beside a denoiser. B batch, S tokens, E width of the text, C channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anyformer.core.front import Entrance
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.skeletons.base import Output, Skeleton
from anyformer.skeletons.denoiser import Denoiser
from anyformer.skeletons.encoder import Encoder


class Painter(Skeleton, Part):
    """A denoiser with the encoder that reads its texts, as one model.

    ```
    input_ids (B, S) ── text ──┬── hidden (B, S, E) ──┐
                               └── pooled (B, E) ─────┤
    timestep (B,) ────────────────────────────────────┤
    pixel_values (B, C, height, width) ── picture ────┴── noise (B, C, height, width)
    ```
    Published denoisers read the states of large encoders that were trained before; this one learns with its encoder.
    Padding of the text is seen by nobody.

    Args:
        text: an Encoder with a pool.
        picture: a Denoiser that reads `encoder_hidden_states` and `pooled_projections`.
    """

    def __init__(self, text: Recipe[Encoder], picture: Recipe[Denoiser]):
        super().__init__()
        self.text, self.picture = text.build(), picture.build()
        missing = {"encoder_hidden_states", "pooled_projections"} - set(self.picture.inputs())
        if missing:
            raise ValueError(
                f"Painter: picture reads no {' and no '.join(sorted(missing))}; give one that does (mmdit)"
            )
        if self.text.pool is None:
            raise ValueError("Painter: text needs a pool, whose vector joins the time")
        self.context = self.text.context

    def entrances(self) -> tuple[Entrance, ...]:
        made = ("hidden_states", "pooled_projections")  # by the encoder
        own = tuple(e for e in self.picture.entrances() if e.front.main not in made)
        return (*own, *self.text.entrances())

    def longest(self, entrance: Entrance) -> int | None:
        return None if entrance.front.vocab is None else self.context

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.text.complete(inputs)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Tensor | None
    ) -> Output:
        """Token ids (B, S) with their padding mask, and the denoiser's inputs, to its Output.

        Raises:
            ValueError: for an input that no part reads, or a missing one.
        """
        present = self.check_inputs({"input_ids": input_ids, "attention_mask": attention_mask, **inputs})
        read = self.text(**{name: present.pop(name) for name in list(present) if name in self.text.inputs()})
        told: dict[str, Any] = {"encoder_hidden_states": read.hidden, "pooled_projections": read.pooled}
        if read.keep is not None:
            told["encoder_attention_mask"] = read.keep
        return self.picture(**present, **told)
