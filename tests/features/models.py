"""The models that every cross-cutting feature is tried on: all pages, and compositions that nobody published."""

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.contract.subjects import first_of
from anyformer.core.pages import empty
from anyformer.edge.export import inputs
from anyformer.skeletons import Skeleton
from tests.later import later

COMPOSED = {
    "hybrid": lambda: af.recipe("llama", depth=3).but({"blocks.2::3.mixer": af.parts.Mamba.of(state=4)}),
    "rotary-bert": lambda: af.recipe("bert").but(
        {
            "embed.positions": None,
            "blocks.*.mixer.positions": af.parts.Rotary.of(),
            "**.norm": af.parts.RMSNorm.of(),
        }
    ),
    "grouped-vit": lambda: af.recipe("vit").but({"blocks.*.mixer.kv_heads": 2}),
}
MATRICES = [n for n in af.names() if any(isinstance(m, torch.nn.Linear) for m in empty(af.recipe(n, "tiny")).modules())]
every_model = pytest.mark.parametrize("name", [*MATRICES, *COMPOSED])  # encodec has convolutions alone
FIRST = [n for n in MATRICES if f"{n}/tiny" in first_of(Skeleton)]
# for what the contract compares on every page: one page of each skeleton in `make test`
one_of_each = pytest.mark.parametrize("name", [*FIRST, *COMPOSED, *later(*(n for n in MATRICES if n not in FIRST))])


def model(name: str, std: float = 0.2) -> Any:
    """A tiny model in evaluation mode whose weights are large enough to matter: N(1 or 0, std)."""
    torch.set_num_threads(1)
    made = af.build(COMPOSED[name](), seed=0) if name in COMPOSED else af.build(name, "tiny", seed=0)
    with torch.no_grad():
        for path, p in made.named_parameters():
            if not path.endswith(("A_log", "step.bias")):  # Mamba's have a range of their own
                p.normal_(mean=1.0 if p.ndim == 1 and path.endswith("weight") else 0.0, std=std)
    return made.eval()


def outputs(made: Any, padding: bool = True, **sizes: int) -> dict[str, torch.Tensor]:
    """Everything that the model says about random inputs."""
    given = inputs(made, padding=padding, **sizes)
    if made.placeholders:  # media, too
        given = made.example(sizes.get("batch", 2), {}, torch.Generator().manual_seed(0))
    out = made(**given)
    single = {n: getattr(out, n) for n in ("hidden", "logits", "pooled", "memory")}
    atoms = {"positions": out.beside["positions"] / 10} if "positions" in out.beside else {}
    return {n: t for n, t in (single | out.heads | atoms).items() if t is not None}


def linear(made: Any) -> dict[str, torch.nn.Linear]:
    """Every linear layer by path."""
    return {path: m for path, m in made.named_modules() if isinstance(m, torch.nn.Linear)}


def idle(layers: Any, made: Any) -> set[str]:
    """Paths of layers that only global tokens go through, which the inputs here have none of (Longformer), of those
    beside a matrix that multiplies 0 by design: all values are then one, whatever q and k are (DETR's queries), and of
    q and k between the rows of an alignment, of which there is one here (AlphaFold 2)."""
    beside = tuple(f"{name.rsplit('.', 2)[0]}.{letter}" for name in made.idle for letter in "qkv")
    alone = ("columns.attention.q", "columns.attention.k")
    return {path for path in layers if ".wide." in path or path in beside or path.endswith(alone)}
