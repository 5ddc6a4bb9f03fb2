"""Mamba (Gu and Dao, 2023; arXiv:2312.00752). A decoder without attention: a recurrent state of fixed size.

Differs from GPT-2 by: one branch a block, a selective state space, instead of attention and an MLP; RMSNorm; no
positions.

```
ids ── token ──┬─ RMSNorm ─ Mamba ─(+)── … x depth ── RMSNorm ── logits (the token table)
               └──────────────────┘
```
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import Lens, must, quiet
from anyformer.hub.tables.mamba import MAMBA, mamba_config, mamba_rows, step_rank
from anyformer.hub.tables.weights import Hub
from anyformer.models._first import mamba_sizes
from anyformer.parts import Block, Logits, RMSNorm, Tokens
from anyformer.parts import Mamba as Mixer
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class Mamba:
    dim: int = 768
    depth: int = 24
    expand: int = 2  # inner width / width
    state: int = 16
    rank: int | None = None  # dim / 16, rounded up
    conv_kernel: int = 4
    vocab: int = 50280
    eps: float = 1e-5
    bias: bool = False
    conv_bias: bool = True
    tied: bool = True


def mamba(c: Mamba) -> Recipe:
    norm = RMSNorm.of(eps=c.eps)
    mixer = Mixer.of(
        hidden=c.expand * c.dim,
        state=c.state,
        rank=c.rank,
        conv_kernel=c.conv_kernel,
        bias=c.bias,
        conv_bias=c.conv_bias,
    )
    block = Block.of(mixer=mixer, norm=norm)
    head = Logits.of(vocab=c.vocab, tied=c.tied)
    return CausalLM.of(c.dim, Tokens.of(vocab=c.vocab), [block] * c.depth, norm=norm, head=head)


SIZES = {
    "tiny": Mamba(dim=32, depth=2, state=4, vocab=128),
    "mini": Mamba(dim=192, depth=4, vocab=1024),
    "130m": Mamba(),
    "370m": Mamba(dim=1024, depth=48),
    "790m": Mamba(dim=1536, depth=48),
    "1.4b": Mamba(dim=2048, depth=48),
    "2.8b": Mamba(dim=2560, depth=64),
}
PARAMETERS = {
    "tiny": 19_424,
    "mini": 1_203_648,
    "130m": 129_135_360,
    "370m": 371_516_416,
    "790m": 793_204_224,
    "1.4b": 1_372_178_432,
    "2.8b": 2_768_345_600,
}
CASES = {
    "untied": {"tied": False, "bias": True, "conv_bias": False},
    "odd": {"dim": 30, "expand": 3, "state": 5, "rank": 7, "conv_kernel": 3, "vocab": 101},
}


def first_weights(c: Mamba) -> dict[str, float]:
    """The authors' sizes: projections as in PyTorch's linear layer, output projections of branches by depth."""
    inner = c.expand * c.dim
    return mamba_sizes(c.dim, inner, c.depth) | {"blocks.*.mixer.select": (3 * inner) ** -0.5}


def _get_inner(config: Mapping[str, Any]) -> dict[str, Any]:
    expand = config.get("expand", 2)
    if config.get("intermediate_size") not in (None, expand * config.get("hidden_size", 0)):
        raise ValueError(f"config keys 'expand' ({expand}) and 'intermediate_size' contradict each other")
    return {"expand": expand}


def _put_inner(c: Mamba) -> dict[str, Any]:
    return {"expand": c.expand, "intermediate_size": c.expand * c.dim}


HUBS = (
    Hub(
        "mamba",
        architectures={"MambaForCausalLM": {}},
        weights=lambda c: mamba_rows(MAMBA),
        config=(
            *mamba_config(tied=True),
            Lens(("expand", "intermediate_size"), ("expand",), _get_inner, _put_inner),
            step_rank("time_step_rank"),
            quiet("time_step_init_scheme", "time_step_scale", why="first weights, before training"),
            must("ssm_cfg", {}),
            quiet("fused_add_norm", "pad_vocab_size_multiple", why="implied by the sizes"),
            quiet("use_mambapy", "use_associative_scan", why="how it is computed"),
        ),
    ),
)
