"""Mamba (Gu and Dao, 2023; arXiv:2312.00752). A decoder without attention: a recurrent state of fixed size.

Differs from GPT-2 by: one branch a block, a selective state space, instead of attention and an MLP; RMSNorm; no
positions.

```
ids ── token ──┬─ RMSNorm ─ Mamba ─(+)── … x depth ── RMSNorm ── logits (the token table)
               └──────────────────┘
```
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import Lens, key, keys, must, quiet
from anyformer.hub.tables.weights import Hub, row, under
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


def mamba(c: Mamba) -> Recipe:
    norm = RMSNorm.of(eps=c.eps)
    mixer = Mixer.of(
        hidden=c.expand * c.dim, state=c.state, rank=c.rank, conv_kernel=c.conv_kernel, bias=c.bias,
        conv_bias=c.conv_bias,
    )  # fmt: skip
    head = Logits.of(vocab=c.vocab, tied=c.tied)
    return CausalLM.of(
        c.dim, Tokens.of(vocab=c.vocab), [Block.of(mixer=mixer, norm=norm)] * c.depth, norm=norm, head=head
    )


def _weights(c: Mamba) -> list:
    names = {
        "in_proj": "into",
        "conv1d": "conv",
        "x_proj": "select",
        "dt_proj": "step",
        "A_log": "A_log",
        "D": "skip",
        "out_proj": "out",
    }
    mixer = under("mixer", "mixer", *(row(theirs, ours) for theirs, ours in names.items()))
    return [
        row("backbone.embeddings", "embed.tokens", also="backbone.embedding"),
        row("backbone.norm_f", "norm"),
        row("lm_head", "head.proj", tied="embed.tokens"),
        under("backbone.layers.{i}", "blocks.{i}", row("norm", "norm.mixer"), mixer),
    ]


def _inner(config: Mapping[str, Any]) -> dict[str, Any]:
    expand = config.get("expand", 2)
    if config.get("intermediate_size") not in (None, expand * config.get("hidden_size", 0)):
        raise ValueError(f"config keys 'expand' ({expand}) and 'intermediate_size' contradict each other")
    return {"expand": expand}


def _rank(config: Mapping[str, Any]) -> dict[str, Any]:
    rank = config.get("time_step_rank", "auto")
    return {"rank": None if rank in ("auto", math.ceil(config.get("hidden_size", 0) / 16)) else rank}


HUBS = (
    Hub(
        "mamba",
        architectures={"MambaForCausalLM": {}},
        weights=_weights,
        config=(
            *keys(hidden_size="dim", num_hidden_layers="depth", state_size="state", conv_kernel="conv_kernel"),
            *keys(vocab_size="vocab", layer_norm_epsilon="eps", use_bias="bias", use_conv_bias="conv_bias"),
            key("tie_word_embeddings", "tied", default=True), must("hidden_act", "silu"),
            Lens(("expand", "intermediate_size"), ("expand",), _inner,
                 lambda c: {"expand": c.expand, "intermediate_size": c.expand * c.dim}),
            Lens(("time_step_rank",), ("rank",), _rank, lambda c: {"time_step_rank": c.rank or math.ceil(c.dim / 16)}),
            quiet("residual_in_fp32", why="for half precision; here the stream has the type of the weights"),
            quiet("rescale_prenorm_residual",
                  *(f"time_step_{n}" for n in ("floor", "init_scheme", "max", "min", "scale")),
                  why="first weights, before training"),
            must("rms_norm", True), must("ssm_cfg", {}),
            quiet("fused_add_norm", "pad_vocab_size_multiple", why="how the first code computed it; the sizes say it"),
            quiet("use_mambapy", "use_associative_scan", why="how it is computed"),
        ),
    ),
)  # fmt: skip
