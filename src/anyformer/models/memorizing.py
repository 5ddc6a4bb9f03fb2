"""Memorizing Transformer (Wu et al., 2022; arXiv:2203.08913). A decoder with a layer that searches earlier tokens.

Differs from T5's decoder by: it reads a text by segments, each of which sees the tokens before it as in Transformer-XL;
one layer also finds the `top` nearest of all older keys, up to `capacity` of them, with a gate per head for their
share; queries and keys of that layer are normed.

```
tokens ──┬─ RMSNorm ─ attention over memory and segment ─(+)─┬─ RMSNorm ─ MLP ─(+)── … x depth ── RMSNorm ── logits
         └───────────────────────────────────────────────────┘└────────────────┘
layer `place`:       ┌─ near: memory and segment, softmax ──────────┐
             q ──────┤                                              ├─ gate ──
                     └─ old: the `top` largest q.k, softmax ────────┘
T5's relative bias, one table for all layers, is added to the scores of the near keys.
```
"""

from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.parts import (
    MLP,
    Block,
    Logits,
    NearestMemory,
    RelativeBias,
    RMSNorm,
    SegmentRecurrence,
    Tokens,
)
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class Memorizing:
    dim: int = 1024
    depth: int = 12
    heads: int = 8
    head_dim: int | None = None  # dim / heads
    hidden: int = 4096
    act: str = "relu"
    vocab: int = 32000
    segment: int = 512
    memory: int = 512
    place: int = 8  # the layer with the search, from 0
    top: int = 32
    capacity: int | None = 65536  # None = any number
    gate: bool = True  # False: one softmax over near and found keys
    buckets: int = 32
    far: int = 128
    eps: float = 1e-6
    tied: bool = False
    dropout: float = 0.0


def memorizing(c: Memorizing) -> Recipe:
    if not 0 <= c.place < c.depth:
        raise ValueError(f"memorizing: place, the number of a layer, must be from 0 to {c.depth - 1}; got {c.place}")
    norm = RMSNorm.of(eps=c.eps)
    shared: dict[str, Any] = {"heads": c.heads, "head_dim": c.head_dim, "segment": c.segment, "memory": c.memory}
    shared["bias"] = False
    near = Block.of(
        mixer=SegmentRecurrence.of(**shared),
        ffn=MLP.of(hidden=c.hidden, act=c.act, bias=False),
        norm=norm,
        dropout=c.dropout,
    )
    old = near.but(mixer=NearestMemory.of(**shared, top=c.top, capacity=c.capacity, gate=c.gate, norm=norm))
    blocks = [old if i == c.place else near for i in range(c.depth)]
    bias = RelativeBias.of(heads=c.heads, buckets=c.buckets, far=c.far, causal=True)
    head = Logits.of(vocab=c.vocab, tied=c.tied)
    return CausalLM.of(c.dim, Tokens.of(vocab=c.vocab, dropout=c.dropout), blocks, norm=norm, head=head, bias=bias)


SIZES = {
    "tiny": Memorizing(
        dim=32,
        depth=2,
        heads=4,
        hidden=48,
        vocab=128,
        segment=4,
        memory=2,
        place=1,
        top=3,
        capacity=7,
        buckets=6,
        far=5,
    ),
    "mini": Memorizing(
        dim=192, depth=4, heads=4, hidden=768, vocab=1024, segment=64, memory=64, place=2, capacity=8192, tied=True
    ),
    "base": Memorizing(),
}
PARAMETERS = {"tiny": 22_732, "mini": 1_968_036, "base": 216_557_064}
CASES = {
    "everything": {"capacity": None, "top": 4, "memory": 0, "segment": 3, "place": 0, "tied": True},
    "one softmax": {"gate": False, "dim": 33, "heads": 3, "head_dim": 12, "vocab": 101, "depth": 3, "segment": 3},
}
ORACLE = (
    "nobody published checkpoints in a common format; the layer that looks things up is compared with "
    "memorizing-transformers-pytorch 0.4.1 on the same weights, the search of FAISS included "
    "(tests/parts/test_memory_peers.py)"
)
HUBS: tuple[Hub, ...] = ()
