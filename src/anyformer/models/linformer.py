"""Linformer (Wang et al., 2020; arXiv:2006.04768). An encoder that attends to a fixed number of summaries of the text.

Differs from BERT by: learned matrices mix the keys and values of all positions to `rank` of them, so attention costs
T x rank; pre-norm, no segments, no pooler; a score for each token at every position.

```
ids ── token + place ──┬─ LayerNorm ─ attention ─(+)─┬─ LayerNorm ─ MLP, GELU ─(+)── … x depth ── logits with bias
                       └─────────────────────────────┘└──────────────────────┘
attention:  q (T, K) ─────────────────────┐
            k (T, K) ── E (rank, T) ──────┴─ softmax (T, rank) ── F v (rank, K) ──> (T, K)
```
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.parts import MLP, Block, LayerNorm, Learned, Logits, Tokens
from anyformer.parts import Linformer as Mixer
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class Linformer:
    dim: int = 768
    depth: int = 12
    heads: int = 12
    kv_heads: int | None = None  # as `heads`
    head_dim: int | None = None  # dim / heads
    rank: int = 256
    shared: bool = False  # keys are values, and E is F
    hidden: int = 3072
    act: str = "gelu"
    vocab: int = 30522
    context: int = 512
    eps: float = 1e-5
    dropout: float = 0.0


def linformer(c: Linformer) -> Recipe:
    mixer = Mixer.of(
        length=c.context,
        rank=c.rank,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        shared=c.shared,
        bias=False,
        out_bias=True,
    )
    block = Block.of(
        mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=LayerNorm.of(eps=c.eps), dropout=c.dropout
    )
    embed = Tokens.of(vocab=c.vocab, positions=Learned.of(context=c.context), dropout=c.dropout)
    head = Logits.of(vocab=c.vocab, bias=True)
    return Encoder.of(c.dim, embed, [block] * c.depth, heads={"tokens": head}, context=c.context)


SIZES = {
    "tiny": Linformer(dim=32, depth=2, heads=4, rank=7, hidden=48, vocab=128, context=64),
    "mini": Linformer(dim=192, depth=4, heads=4, rank=64, hidden=768, vocab=1024, context=256),
    "base": Linformer(),
}
PARAMETERS = {"tiny": 26_976, "mini": 2_351_616, "base": 135_478_074}
CASES = {
    "shared": {"shared": True, "kv_heads": 1},
    "wide heads": {"dim": 33, "heads": 3, "head_dim": 12, "rank": 70, "vocab": 101},
}
ORACLE = (
    "nobody published checkpoints in a common format; the whole model is compared with linformer 0.2.3 on the same "
    "weights (tests/parts/test_peers.py)"
)
HUBS: tuple[Hub, ...] = ()
