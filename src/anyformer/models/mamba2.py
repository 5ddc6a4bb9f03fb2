"""Mamba-2 (Dao and Gu, 2024; arXiv:2405.21060). A decoder without attention that is linear attention with a decay.

Differs from Mamba by: heads, each with one decay for all its channels; B and C come with u instead of from it, and
the heads of a group share them; a gated RMSNorm before the output. A text is computed in chunks, by matrix products.

```
ids ── token ──┬─ RMSNorm ─ Mamba-2 ─(+)── … x depth ── RMSNorm ── logits
               └────────────────────┘
state of a head, N x P:   S ── exp(step A) ──(+)── S          y = S^T C + skip u
                                B (step u)^T ─┘
```
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import Lens, key, must, quiet
from anyformer.hub.tables.mamba import MAMBA2, mamba_config, mamba_rows
from anyformer.hub.tables.weights import Hub
from anyformer.models._first import mamba_sizes
from anyformer.parts import Block, Logits, RMSNorm, Tokens
from anyformer.parts import Mamba2 as Mixer
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class Mamba2:
    dim: int = 4096
    depth: int = 64
    heads: int = 128
    expand: int = 2  # inner width / width
    state: int = 128
    groups: int = 8
    conv_kernel: int = 4
    vocab: int = 32768
    eps: float = 1e-5
    bias: bool = False
    conv_bias: bool = True
    shortest: float = 0.0  # limits of the step
    longest: float | None = None
    tied: bool = False


def mamba2(c: Mamba2) -> Recipe:
    norm = RMSNorm.of(eps=c.eps)
    mixer = Mixer.of(
        heads=c.heads,
        hidden=c.expand * c.dim,
        state=c.state,
        groups=c.groups,
        conv_kernel=c.conv_kernel,
        bias=c.bias,
        conv_bias=c.conv_bias,
        eps=c.eps,
        shortest=c.shortest,
        longest=c.longest,
    )
    block = Block.of(mixer=mixer, norm=norm)
    head = Logits.of(vocab=c.vocab, tied=c.tied)
    return CausalLM.of(c.dim, Tokens.of(vocab=c.vocab), [block] * c.depth, norm=norm, head=head)


def _small(dim: int, depth: int) -> Mamba2:
    return Mamba2(dim=dim, depth=depth, heads=dim // 32, groups=1, vocab=50288, tied=True)


SIZES = {
    "tiny": Mamba2(dim=32, depth=2, heads=4, state=5, groups=2, vocab=128),
    "mini": Mamba2(dim=192, depth=4, heads=6, state=32, groups=1, vocab=1024, tied=True),
    "130m": _small(dim=768, depth=24),
    "370m": _small(dim=1024, depth=48),
    "780m": _small(dim=1536, depth=48),
    "1.3b": _small(dim=2048, depth=48),
    "2.7b": _small(dim=2560, depth=64),
    "codestral-7b": Mamba2(),
}
PARAMETERS = {
    "tiny": 23_104,
    "mini": 1_146_632,
    "130m": 128_989_632,
    "370m": 368_346_624,
    "780m": 780_161_280,
    "1.3b": 1_343_757_312,
    "2.7b": 2_702_599_680,
    "codestral-7b": 7_285_403_648,
}
CASES = {
    "tied": {"tied": True, "bias": True, "conv_bias": False},
    "odd": {"dim": 30, "expand": 3, "heads": 6, "groups": 3, "state": 7, "conv_kernel": 3, "vocab": 101},
    "one group": {"groups": 1, "heads": 8},
    "limits": {"shortest": 0.4, "longest": 0.7},
}


def first_weights(c: Mamba2) -> dict[str, float]:
    """The authors' sizes: projections as in PyTorch's linear layer, output projections of branches by depth."""
    return mamba_sizes(c.dim, c.expand * c.dim, c.depth)


def _get_heads(config: Mapping[str, Any]) -> dict[str, Any]:
    heads, width = config.get("num_heads", 128), config.get("head_dim", 64)
    expand, dim = config.get("expand", 2), config["hidden_size"]
    if heads * width != expand * dim:
        raise ValueError(
            f"config keys: num_heads ({heads}) x head_dim ({width}) must be expand ({expand}) x hidden_size ({dim})"
        )
    return {"heads": heads, "expand": expand}


def _put_heads(c: Mamba2) -> dict[str, Any]:
    return {"num_heads": c.heads, "head_dim": c.expand * c.dim // c.heads, "expand": c.expand}


def _get_limits(config: Mapping[str, Any]) -> dict[str, Any]:
    low, high = config.get("time_step_limit") or (0.0, float("inf"))
    endless = high in (float("inf"), {"__float__": "Infinity"}, "inf")
    return {"shortest": low, "longest": None if endless else high}


def _put_limits(c: Mamba2) -> dict[str, Any]:
    if (c.shortest, c.longest) == (0.0, None):
        return {}
    return {"time_step_limit": [c.shortest, float("inf") if c.longest is None else c.longest]}


HUBS = (
    Hub(
        "mamba2",
        architectures={"Mamba2ForCausalLM": {}},
        weights=lambda c: mamba_rows(MAMBA2),
        config=(
            *mamba_config(tied=False),
            key("n_groups", "groups"),
            Lens(("num_heads", "head_dim", "expand"), ("heads", "expand"), _get_heads, _put_heads),
            Lens(("time_step_limit",), ("shortest", "longest"), _get_limits, _put_limits),
            must("norm_before_gate", False),
            quiet("time_step_rank", why="first weights, before training"),
            quiet("chunk_size", why="how it is computed"),
        ),
    ),
)
