"""Parts of a discrete autoencoder of pictures: convolutions to a grid, codes, and back to pixels.

B batch, R rows and S columns of the grid, T = R S cells row by row, D width, V codes, W their width, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.front import Inputs
from anyformer.core.part import Part, check_option
from anyformer.parts.embeddings import Cells, Pictures

DRAWS = ("soft", "straight", "reinmax")


class ResidualConv(Part):
    """y = x + conv1(relu(conv3(relu(conv3(x))))). Shape: (B, D, R, S) -> same."""

    def __init__(self, dim: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, dim, 3, padding=1)
        self.last = nn.Conv2d(dim, dim, 1)

    def reset_parameters(self) -> None:
        redraw(self)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.relu(self.second(F.relu(self.first(x)))))


class Halve(Part):
    """y = relu(conv(x)), half as high and wide. Shape: (B, C, R, S) -> (B, D, R / 2, S / 2)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, 4, stride=2, padding=1)

    def reset_parameters(self) -> None:
        redraw(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class Double(Part):
    """y = relu(conv(x)), transposed, twice as high and wide. Shape: (B, C, R, S) -> (B, D, 2 R, 2 S)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, dim, 4, stride=2, padding=1)

    def reset_parameters(self) -> None:
        redraw(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class ConvGrid(Pictures):
    """An image as a grid: each of `layers` convolutions of 4 x 4 pixels halves it, then residual blocks (Ramesh et al.,
    2021; arXiv:2102.12092).

    Args:
        image: trained height and width in pixels; others are accepted.
        layers: the grid has a cell for 2^layers x 2^layers pixels.
        residual: number of residual blocks.
        channels: colours.

    Shape: (B, C, height, width) -> (B, T, D).
    """

    def __init__(self, dim: int, image: int = 256, layers: int = 3, residual: int = 0, channels: int = 3):
        super().__init__()
        if layers < 1 or image < 1 or image % 2**layers:
            raise ValueError(
                f"ConvGrid: an image of {image} pixels cannot be halved layers={layers} times, at least once"
            )
        self.image, self.patch, self.channels, self.grid = image, 2**layers, channels, image // 2**layers
        halves = [Halve(dim if i else channels, dim) for i in range(layers)]
        self.blocks = nn.ModuleList([*halves, *(ResidualConv(dim) for _ in range(residual))])

    def length(self, inputs: Inputs) -> int:
        rows, columns = self.cells(inputs)
        return rows * columns

    def cells(self, inputs: Inputs) -> tuple[int, int]:
        height, width = self.pixels(inputs).shape[2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"pixel_values of {(height, width)} pixels are no whole number of cells of {self.patch}")
        return height // self.patch, width // self.patch

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        x = inputs["pixel_values"]
        for block in self.blocks:
            x = block(x)  # (B, D, …, …)
        flow.put(Cells(x.shape[2], x.shape[3], first=0))
        return x.flatten(2).mT


class Codes(Part):
    """The code of each cell, and its vector.

    ```
    s = W x + b,   soft = softmax((s + noise) / temperature)     noise -log(-log u): a sample (Jang et al., 2017;
    arXiv:1611.01144)                                            no noise: the likeliest code
    ```
    The vector is soft^T table, if there is noise and `draws` is "soft"; else that of the largest entry alone, with the
    gradient of soft^T table.

    Args:
        vocab: V. width: W.
        temperature: annealed in training: `model.codes.temperature = annealed(step, steps)`.
        draws: with noise, "soft" mixes vectors; "straight" takes one; "reinmax" does, too, with a gradient of second
            order (Liu et al., 2023; arXiv:2304.08612).

    Shape: (B, T, D) -> vectors (B, T, W), scores (B, T, V).
    """

    def __init__(
        self,
        dim: int,
        vocab: int = 512,
        width: int = 512,
        temperature: float = 0.9,
        draws: str = "soft",
    ):
        super().__init__()
        if vocab < 1 or width < 1 or not temperature > 0:
            raise ValueError(
                f"Codes: vocab and width are at least 1 and temperature is above 0; got {vocab}, {width}, {temperature}"
            )
        check_option("Codes", "draws", draws, DRAWS)
        self.scores, self.table = nn.Linear(dim, vocab), nn.Embedding(vocab, width)
        self.temperature, self.draws = temperature, draws

    def reset_parameters(self) -> None:
        redraw(self.scores, self.table)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scores = self.scores(x)
        soft = ((scores if noise is None else scores + noise) / self.temperature).softmax(-1)
        if self.draws != "soft" or noise is None:
            one = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
            if self.draws == "reinmax":
                half = (one + (scores / self.temperature).softmax(-1)) / 2
                half = ((half.clamp(min=1e-20).log() - scores).detach() + scores).softmax(-1)
                soft = 2 * half - scores.softmax(-1) / 2
            soft = one - soft.detach() + soft
        return soft @ self.table.weight, scores


class ConvPixels(Part):
    """A grid of vectors as pixels: residual blocks, then each of `layers` transposed convolutions doubles it.

    Args:
        hidden: width inside. layers, residual, channels: as in `ConvGrid`.

    Shape: (B, W, R, S) -> (B, C, 2^layers R, 2^layers S).
    """

    def __init__(self, dim: int, hidden: int = 64, layers: int = 3, residual: int = 0, channels: int = 3):
        super().__init__()
        self.enter = nn.Conv2d(dim, hidden, 1) if residual else None
        doubles = [Double(hidden if i or residual else dim, hidden) for i in range(layers)]
        self.blocks = nn.ModuleList([*(ResidualConv(hidden) for _ in range(residual)), *doubles])
        self.last = nn.Conv2d(hidden, channels, 1)

    def reset_parameters(self) -> None:
        redraw(*([] if self.enter is None else [self.enter]), self.last)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.enter is None else self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def redraw(*modules: nn.Module) -> None:
    """PyTorch's own first weights, which keep the size of activations in a stack of convolutions without norms."""
    for module in modules:
        for inner in module.modules():
            if isinstance(inner, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
                inner.reset_parameters()


def gumbel(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """Noise -log(-log u), u from 0 to 1: the code with the largest score plus noise is a sample of softmax(scores)."""
    return -torch.empty(shape).exponential_(generator=generator).log()
