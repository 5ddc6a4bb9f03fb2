"""Linear Transformer (Katharopoulos et al., 2020; arXiv:2006.16236). A decoder that is a recurrent network.

Differs from GPT-2 by: the softmax of attention is a product of features, f(q).f(k) with f(x) = elu(x) + 1, so a token
costs the same at every position and decoding keeps a state of fixed size.

```
ids ── token + place ──┬─ LayerNorm ─ linear attention ─(+)─┬─ LayerNorm ─ MLP, GELU ─(+)── … x depth ──┐
                       └────────────────────────────────┘   └──────────────────────┘                    │
                                                                       logits ── LayerNorm ─────────────┘
in training   y = (f(q) f(k)^T, the past only) v / sums of its rows          chunk by chunk
decoding      S += f(k) v^T,  z += f(k),  y = S^T f(q) / z.f(q)              S is heads x K x K, whatever the length
```
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.parts import MLP, Block, LayerNorm, Learned, LinearAttention, Logits, Tokens
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class LinearTransformer:
    dim: int = 512
    depth: int = 8
    heads: int = 8
    hidden: int = 2048
    feature: str = "elu"  # see anyformer.parts.approximate.linear.FEATURES
    act: str = "gelu"
    vocab: int = 256
    context: int = 4096
    eps: float = 1e-5
    tied: bool = False
    dropout: float = 0.0


def linear(c: LinearTransformer) -> Recipe:
    norm = LayerNorm.of(eps=c.eps)
    mixer = LinearAttention.of(heads=c.heads, feature=c.feature)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, dropout=c.dropout)
    embed = Tokens.of(vocab=c.vocab, positions=Learned.of(context=c.context), dropout=c.dropout)
    head = Logits.of(vocab=c.vocab, tied=c.tied)
    return CausalLM.of(c.dim, embed, [block] * c.depth, norm=norm, head=head, context=c.context)


SIZES = {
    "tiny": LinearTransformer(dim=32, depth=2, heads=4, hidden=48, vocab=128, context=64),
    "mini": LinearTransformer(dim=192, depth=4, hidden=768, vocab=1024, context=1024, tied=True),
    "base": LinearTransformer(),
}
PARAMETERS = {"tiny": 25_312, "mini": 2_173_056, "base": 27_579_392}
CASES = {
    "relu": {"feature": "relu", "tied": True},
    "square": {"feature": "square", "dim": 33, "heads": 3, "vocab": 101},
    "exp": {"feature": "exp", "depth": 1},
    "softmax": {"feature": "softmax"},
}
ORACLE = (
    "nobody published checkpoints in a common format; the layer is compared with attention that has the weights "
    "f(q).f(k), written out over all pairs (tests/parts/test_linear.py)"
)
HUBS: tuple[Hub, ...] = ()
