"""Transformer-XL (Dai et al., 2019; arXiv:1901.02860). A decoder that reads by segments, with a memory of earlier ones.

Differs from GPT-2 by: a segment also sees the hidden states of the tokens before it, layer by layer, so that a layer's
memory reaches further back than the one below; relative positions, which make that possible; norms after each sum; no
biases in attention; ReLU.

```
layer 2     o o o o   o o o o   o o o o         segment, L tokens; memory, M tokens: no gradient goes back there
                  ╲ ╲ │╲ ╲ ╲ │
layer 1     o o o o   o o o o   o o o o
            └ segment 0 ┘└ 1 ┘└── 2 ──┘
x ──┬─ attention over memory and segment ─(+)─ LayerNorm ─┬─ MLP ─(+)─ LayerNorm ── … x depth ── logits with bias
    └─────────────────────────────────────┘               └───────┘
```
`u` and `v` of the relative positions are each layer's own, as in the WikiText-103 models and XLNet; the enwik8 models
share them between layers.
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.parts import MLP, Block, LayerNorm, Logits, Relative, SegmentRecurrence, Tokens
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class TransformerXL:
    dim: int = 512
    depth: int = 12
    heads: int = 8
    head_dim: int | None = None  # dim / heads
    hidden: int = 2048
    act: str = "relu"
    vocab: int = 204
    segment: int = 512
    memory: int = 512
    far: int | None = None  # larger distances count as this one; for memories longer than those of training
    eps: float = 1e-5
    tied: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0


def transformerxl(c: TransformerXL) -> Recipe:
    mixer = SegmentRecurrence.of(
        heads=c.heads,
        head_dim=c.head_dim,
        segment=c.segment,
        memory=c.memory,
        bias=False,
        scores=[Relative.of(far=c.far)],
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
    "tiny": TransformerXL(dim=32, depth=2, heads=4, hidden=48, vocab=128, segment=4, memory=5),
    "mini": TransformerXL(dim=192, depth=4, heads=4, hidden=768, vocab=1024, segment=64, memory=64),
    "enwik8-12": TransformerXL(),  # 41 million parameters
    "enwik8-24": TransformerXL(dim=1024, depth=24, hidden=3072, segment=768, memory=768),  # 277 million
}
PARAMETERS = {"tiny": 21_152, "mini": 2_123_008, "enwik8-12": 41_066_700, "enwik8-24": 277_278_924}
CASES = {
    "no memory": {"memory": 0, "segment": 3, "tied": False},
    "wide heads": {"dim": 33, "heads": 3, "head_dim": 12, "vocab": 101, "far": 6, "memory": 7, "depth": 1},
}
ORACLE = (
    "transformers has dropped it and nobody else published checkpoints in a common format; attention with memory is "
    "compared with XLNet's of transformers, and rows of segments with the paper's loop over segments, gradients too "
    "(tests/parts/test_memory.py)"
)
HUBS: tuple[Hub, ...] = ()
