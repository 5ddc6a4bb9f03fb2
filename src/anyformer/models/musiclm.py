"""MusicLM (Agostinelli et al., 2023; arXiv:2301.11325). Three decoders, one behind the other, from a text to codes of
music: what sounds (semantic codes), how it sounds (the first books of a codec), in detail (the other books).

Differs from MusicGen by: a stage sees what the one before made as a text in front of its own, one code a step, in
place of all books at once; no encoder. Differs from GPT-2 by: T5's bias on the scores in place of positions, no biases.

```
text ─────────────┬─ decoder: semantic ─┬─ semantic codes
text, semantic ───┴─ decoder: coarse ───┴─ books 1 … C of each frame, in turns ─┬─ decoder: fine ── the other books
                                                                                └──── codec ── sound
```
One page is one stage; `generate.cascade` chains three. Differs from the paper by: tokens of a text in place of those of
a joint embedding of music and text; semantic codes are any clusters of frames.
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.media.stages import Layout
from anyformer.parts import MLP, Attention, Block, LayerNorm, Logits, RelativeBias, Tokens
from anyformer.skeletons.staged import StagedLM


@dataclass(frozen=True)
class MusicLM:
    stage: str = "semantic"  # or coarse, fine
    dim: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 4096
    vocab: int = 1024  # ids of the text
    semantic: int = 1024  # codes
    codes: int = 1024  # of each book of the codec
    coarse: int = 4  # books
    fine: int = 8
    buckets: int = 32
    far: int = 128
    context: int = 4096
    dropout: float = 0.0


def musiclm(c: MusicLM) -> Recipe:
    layout = Layout(stage=c.stage, text=c.vocab, semantic=c.semantic, codes=c.codes, coarse=c.coarse, fine=c.fine)
    norm = LayerNorm.of()
    mixer = Attention.of(heads=c.heads, bias=False, dropout=c.dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, bias=False), norm=norm, dropout=c.dropout)
    return StagedLM.of(
        c.dim,
        Tokens.of(vocab=layout.vocab, dropout=c.dropout),
        [block] * c.depth,
        norm=norm,
        head=Logits.of(vocab=layout.vocab),
        layout=layout,
        bias=RelativeBias.of(heads=c.heads, buckets=c.buckets, far=c.far, causal=True),
        context=c.context,
    )


_mini = MusicLM(dim=192, depth=4, heads=4, hidden=768, semantic=64, codes=256, coarse=2, fine=2, context=1024)
SIZES = {
    "tiny": MusicLM(
        dim=32,
        depth=2,
        heads=4,
        hidden=48,
        vocab=128,
        semantic=20,
        codes=16,
        coarse=2,
        fine=3,
        buckets=8,
        far=20,
        context=96,
    ),
    "mini": _mini,
    "mini-coarse": replace(_mini, stage="coarse"),
    "mini-fine": replace(_mini, stage="fine"),
    "semantic": MusicLM(),
    "coarse": MusicLM(stage="coarse"),
    "fine": MusicLM(stage="fine"),
}
PARAMETERS = {
    "tiny": 24_288,
    "mini": 2_191_616,
    "mini-coarse": 2_388_608,
    "mini-fine": 2_167_040,
    "semantic": 306_289_152,
    "coarse": 314_679_808,
    "fine": 327_260_672,
}
CASES = {
    "coarse": {"stage": "coarse", "dim": 30, "heads": 3, "hidden": 40},
    "fine": {"stage": "fine", "depth": 1, "codes": 8, "coarse": 3, "fine": 1},
}
ORACLE = (
    "nobody published checkpoints; parts and wiring are those of t5 and gpt2, whose numbers are compared; the cascade "
    "is held to properties: a stage sees what the one before made and nothing else, codes stay in their books, "
    "lengths follow from the frame rates (tests/generate/test_cascade.py)"
)
HUBS: tuple[Hub, ...] = ()
