"""Discrete autoencoders of pictures. B batch, T cells of R x S, V codes, C channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyformer.core.front import Entrance, FrontEnd, Input
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.parts.codes import Codes, ConvPixels, gumbel
from anyformer.parts.pyramid import grid_of
from anyformer.skeletons.base import Output, Skeleton, embed_inputs

NOISE = "noise"


@dataclass(frozen=True)
class Sampled(Entrance):
    """The entrance of the picture, with the noise by which codes are drawn."""

    def inputs(self) -> dict[str, Input]:
        return {**super().inputs(), NOISE: Input(("cells", "codes"), fixed=("codes",), required=False)}


class Autoencoder(Skeleton, Part):
    """A picture as a grid of codes, and a grid of codes as a picture (dVAE).

    ```
    pixel_values (B, C, height, width) -> embed -> hidden (B, T, D) -> codes -> decoder -> heads.pixels (B, C, …)
                                                                         └─ heads.codes, scores (B, T, V)
    ```
    In training, `noise` (B, T, V) draws the codes (`anyformer.parts.codes.gumbel`); without it a cell has its likeliest
    code. So a pass is a function of its inputs, in training, too.

    Args:
        dim: width of the encoder.
        embed: front-end that leaves a grid, `ConvGrid.of(...)`.
        codes: `Codes.of(...)`.
        decoder: of the codes' vectors, `ConvPixels.of(...)`.
        mean, std: of the model's processor, by which `decode` gives pixels from 0 to 1.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        codes: Recipe[Codes],
        decoder: Recipe[ConvPixels],
        mean: float = 0.5,
        std: float = 0.5,
    ):
        super().__init__()
        if not std > 0:
            raise ValueError(f"Autoencoder: std is that of pixels from 0 to 1, above 0; got {std}")
        self.embed, self.codes = embed.build(dim), codes.build(dim)
        self.decoder = decoder.build(self.codes.table.embedding_dim)
        self.mean, self.std = mean, std

    def entrances(self) -> tuple[Entrance, ...]:
        return (Sampled(self.embed),)

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels = inputs.get("pixel_values")
        if pixels is None or NOISE in inputs:
            return inputs
        count, codes = self.embed.length({"pixel_values": pixels}), self.codes.table.num_embeddings
        drawn = gumbel(len(pixels), count, codes, generator=torch.Generator().manual_seed(count))
        return {**inputs, NOISE: drawn.to(pixels)}

    def forward(self, **inputs: Tensor | None) -> Output:
        """The inputs by name to an Output: `logits`, the scores of codes (B, T, V), and `heads.pixels`, the picture
        again, in the scale of `pixel_values`."""
        named = self.check_inputs(inputs)
        entrance, noise = self.entrances()[0], named.get(NOISE)
        tensors, flow = self.begin(entrance, named)
        x = embed_inputs(self.embed, tensors, flow)  # (B, T, D)
        shape = (*x.shape[:2], self.codes.table.num_embeddings)
        if noise is not None and noise.shape != shape:
            raise ValueError(f"noise must be (batch, cells, codes) = {tuple(shape)}, got {tuple(noise.shape)}")
        vectors, scores = self.codes(x, noise)
        pixels = self.decoder(vectors.mT.unflatten(2, grid_of(flow, "Autoencoder")))
        return Output(x, scores, {"codes": scores, "pixels": pixels}, figures=flow.figures)

    @torch.no_grad()
    def coded(self, pixel_values: Tensor) -> Tensor:
        """The likeliest code of each cell, (B, R, S)."""
        scores = self(pixel_values=pixel_values).logits
        assert scores is not None
        return scores.argmax(-1).unflatten(1, self.embed.cells({"pixel_values": pixel_values}))  # type: ignore[arg-type]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Pictures of codes (B, R, S), with pixels from 0 to 1: (B, C, height, width).

        Raises:
            ValueError: for another shape, or a code outside the table.
        """
        count = self.codes.table.num_embeddings
        if codes.ndim != 3 or codes.is_floating_point():
            raise ValueError(
                f"codes must be whole numbers (batch, rows, columns), got {codes.dtype} {tuple(codes.shape)}"
            )
        bad = codes[(codes < 0) | (codes >= count)]
        if len(bad):
            raise ValueError(f"code {int(bad[0])} is outside the table: codes go from 0 to {count - 1}")
        pixels = self.decoder(self.codes.table(codes).permute(0, 3, 1, 2))
        return (pixels * self.std + self.mean).clamp(0, 1)
