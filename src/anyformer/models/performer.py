"""Performer (Choromanski et al., 2020; arXiv:2009.14794). A decoder with linear attention, on average that of softmax.

Differs from GPT-2 by: random features estimate the weights exp(q.k) of attention, f(q).f(k), so time and memory are
linear in the length; no biases of q, k, v and o. Differs from the Linear Transformer only by the features.

```
ids ── token + place ──┬─ LayerNorm ─ FAVOR+ ─(+)─┬─ LayerNorm ─ MLP, GELU ─(+)── … x depth ──┐
                       └──────────────────────────┘└──────────────────────┘                   │
                                                          logits with bias ── LayerNorm ──────┘
f(x) = exp(W x - |x|^2 / 2), x = q or k, / K^1/4           W: features x K, random, orthogonal rows, redrawn in training
```
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.parts import MLP, Block, Favor, LayerNorm, Learned, Logits, Tokens
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class Performer:
    dim: int = 512
    depth: int = 6
    heads: int = 8
    head_dim: int | None = None  # dim / heads
    features: int | None = None  # K ln K
    feature: str = "softmax"  # or relu: "generalized attention"
    feature_eps: float | None = None  # 1e-4, for relu 1e-3
    hidden: int = 2048
    act: str = "gelu"
    vocab: int = 256
    context: int = 8192
    eps: float = 1e-5
    bias: bool = False  # of q, k, v and o
    tied: bool = False
    dropout: float = 0.0


def performer(c: Performer) -> Recipe:
    norm = LayerNorm.of(eps=c.eps)
    mixer = Favor.of(
        heads=c.heads, head_dim=c.head_dim, features=c.features, feature=c.feature, eps=c.feature_eps, bias=c.bias
    )
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, dropout=c.dropout)
    embed = Tokens.of(vocab=c.vocab, positions=Learned.of(context=c.context), dropout=c.dropout)
    head = Logits.of(vocab=c.vocab, tied=c.tied, bias=not c.tied)
    return CausalLM.of(c.dim, embed, [block] * c.depth, norm=norm, head=head, context=c.context)


SIZES = {
    "tiny": Performer(dim=32, depth=2, heads=4, hidden=48, vocab=128, context=64),
    "mini": Performer(dim=192, depth=4, hidden=768, vocab=1024, context=1024, tied=True),
    "base": Performer(),
}
PARAMETERS = {"tiny": 25_184, "mini": 2_169_984, "base": 23_359_744}
CASES = {
    "relu": {"feature": "relu", "tied": True},
    "wide heads": {"dim": 33, "heads": 3, "head_dim": 12, "features": 10, "feature_eps": 1e-2, "vocab": 101},
    "bias": {"bias": True, "depth": 1},
}
ORACLE = (
    "nobody published checkpoints in a common format; the whole model is compared with performer-pytorch 1.1.4 on the "
    "same weights and random features (tests/parts/test_peers.py)"
)
HUBS: tuple[Hub, ...] = ()
