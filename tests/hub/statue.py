"""A page of nobody's architecture, whose files have all that maps can say: whole buffers, tensors that are several on
one side, older names, parts that nothing computes, and a second format, that of diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from anyformer.core import pages
from anyformer.core.flow import Flow
from anyformer.core.recipe import Recipe
from anyformer.core.slots import FeedForward, Norm
from anyformer.hub.tables.config import keys
from anyformer.hub.tables.several import Copies, Join, Stack, Unstack, WeightNorm
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.parts import Block, Classifier, LayerNorm, Mean, Tokens
from anyformer.parts.heads import Kept
from anyformer.skeletons import Encoder

EXPERTS, CLASSES = 3, 5


class Running(Norm):
    """By statistics that are stored, not those of the input."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean) * (self.running_var + 1e-5).rsqrt() * self.weight + self.bias


class Several(FeedForward):
    """One matrix of theirs is several here, or the reverse."""

    def __init__(self, dim: int):
        super().__init__()
        self.joined = nn.Linear(dim, dim)
        self.stacked = nn.Parameter(torch.zeros(EXPERTS, dim, dim))
        self.experts = nn.ModuleList(nn.Linear(dim, dim) for _ in range(EXPERTS))

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        x = self.joined(x) + (x @ self.stacked.sum(0)).tanh()
        return sum((expert(x) for expert in self.experts), x)


@dataclass(frozen=True)
class Statue:
    dim: int
    depth: int
    vocab: int = 11


def statue(c: Statue) -> Recipe:
    block = Block.of(mixer=None, ffn=Several.of(), norm=Running.of())
    heads = {"classes": Classifier.of(classes=CLASSES)}
    blocks = [*[block] * (c.depth - 1), Kept.of(block)]
    return Encoder.of(c.dim, Tokens.of(vocab=c.vocab), blocks, Kept.of(LayerNorm.of()), Mean.of(), heads)


def _weights(c: Statue) -> list:
    ffn = "layers.{i}.ffn."
    return [
        row(
            ("words.weight_g", "words.weight_v"), "embed.tokens.weight", WeightNorm(0),
            also=(("words.original0", "words.original1"),),
        ),
        row(tuple(f"layers.{i}.classes" for i in range(c.depth)), "heads.classes.proj", Copies(c.depth)),
        under("layers.{i}", "blocks.{i}", row("batch_norm", "norm.ffn", also="bn")),
        row((f"{ffn}one", f"{ffn}two"), "blocks.{i}.ffn.joined", Join((1, c.dim - 1))),
        row(tuple(f"{ffn}expert.{e}.w" for e in range(EXPERTS)), "blocks.{i}.ffn.stacked", Stack()),
        row(f"{ffn}all", tuple(f"blocks.{{i}}.ffn.experts.{e}" for e in range(EXPERTS)), Unstack()),
        row("last_norm", "norm"),
    ]  # fmt: skip


CONFIG = keys(width="dim", layers="depth", words="vocab")
HF = Hub("statue", CONFIG, _weights, {"StatueModel": {}})
THEIRS = Hub("statues", CONFIG, _weights, {"StatueTransformer2DModel": {}}, format="diffusers")


@contextmanager
def page(*hubs: Hub) -> Iterator[None]:
    """The page, among all others, with these maps."""
    module = ModuleType("anyformer.models.statue")
    module.__doc__ = "Statue."
    module.SIZES, module.CASES, module.HUBS = {"tiny": Statue(dim=4, depth=2)}, {}, hubs  # type: ignore[attr-defined]
    module.statue = statue  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        found, listed = pages.page, pages.names()
        mine = pages.Page("statue", module)
        patch.setattr(pages, "names", lambda: [*listed, "statue"])
        patch.setattr(pages, "page", lambda name: mine if name == "statue" else found(name))
        yield


def made(seed: int = 0) -> nn.Module:
    """A model, every number of it drawn; the statistics such as those of real inputs."""
    model = pages.build("statue", seed=seed, depth=3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.normal_(generator=generator)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return model.eval()
