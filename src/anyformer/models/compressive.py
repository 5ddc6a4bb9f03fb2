"""Compressive Transformer (Rae et al., 2020; arXiv:1911.05507). Transformer-XL with summaries of old memories.

Differs from Transformer-XL by: every `rate` tokens that leave a layer's memory become one slot of a second memory, by
a convolution that learns to preserve attention's outputs (an auxiliary loss, `compression`, trains only it).

```
······[ compressed memory, slots ][ memory, M tokens ][ segment, L tokens ]
            ▲ conv of `rate` tokens ──┘ the oldest L of each step
x ──┬─ attention over all three ─(+)─ LayerNorm ─┬─ MLP ─(+)─ LayerNorm ── … x depth ── logits with bias
    └────────────────────────────┘               └───────┘
```
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.parts import MLP, Block, CompressiveMemory, LayerNorm, Logits, Relative, Tokens
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class Compressive:
    dim: int = 1024
    depth: int = 24
    heads: int = 8
    head_dim: int | None = None  # dim / heads
    hidden: int = 3072
    act: str = "relu"
    vocab: int = 204
    segment: int = 768
    memory: int = 768  # at least `segment`
    compressed: int = 1152  # slots
    rate: int = 3  # tokens of a slot; divides `segment` and `memory`
    way: str = "conv"  # or mean, max
    eps: float = 1e-5
    tied: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0


def compressive(c: Compressive) -> Recipe:
    mixer = CompressiveMemory.of(
        heads=c.heads,
        head_dim=c.head_dim,
        segment=c.segment,
        memory=c.memory,
        compressed=c.compressed,
        rate=c.rate,
        way=c.way,
        bias=False,
        scores=[Relative.of()],
        dropout=c.attention_dropout,
    )
    block = Block.of(
        mixer=mixer,
        ffn=MLP.of(hidden=c.hidden, act=c.act, dropout=c.dropout),
        norm=LayerNorm.of(eps=c.eps),
        wiring="post",
        dropout=c.dropout,
    )
    embed = Tokens.of(vocab=c.vocab, scale=c.dim**0.5, dropout=c.dropout)
    return CausalLM.of(
        c.dim, embed, [block] * c.depth, norm=None, head=Logits.of(vocab=c.vocab, tied=c.tied, bias=True)
    )


SIZES = {
    "tiny": Compressive(dim=32, depth=2, heads=4, hidden=48, vocab=128, segment=4, memory=4, compressed=3, rate=2),
    "mini": Compressive(
        dim=192, depth=4, heads=4, hidden=768, vocab=1024, segment=64, memory=64, compressed=64, rate=4
    ),
    "enwik8": Compressive(),
}
PARAMETERS = {"tiny": 25_312, "mini": 2_713_600, "enwik8": 352_800_972}
CASES = {
    "mean": {"way": "mean", "segment": 3, "memory": 3, "rate": 3, "tied": False},
    "max": {"way": "max", "segment": 2, "dim": 33, "heads": 3, "head_dim": 12, "vocab": 101, "depth": 1},
    "rate 1": {"rate": 1, "compressed": 2, "segment": 3, "memory": 5},
}
ORACLE = (
    "nobody published checkpoints; attention with both memories and the auxiliary loss are compared with "
    "compressive-transformer-pytorch 0.4.0 on the same weights, and with the paper's algorithms, gradients too "
    "(tests/parts/test_memory.py, tests/parts/test_memory_peers.py)"
)
HUBS: tuple[Hub, ...] = ()
