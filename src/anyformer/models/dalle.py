"""DALL-E (Ramesh et al., 2021; arXiv:2102.12092), as in dalle-pytorch. A decoder that writes the codes of a picture
after its text.

Differs from GPT-2 by: one sequence of a text and the codes of a dVAE's grid; a cell's attention sees the text and,
in turns, all cells before it, its row, its column or a square; rotary positions for text, row and column, which turn
the values, too; channels that come from the token before, or from the cells above and left; a small scale on each
branch; only tokens of the text, or only codes, can be next.

```
0, text, codes ── token ──┬─ LayerNorm ─ shift ─ attention ─ scale ─(+)─┬─ LayerNorm ─ shift ─ MLP ─ scale ─(+)──┐
                          └─────────────────────────────────────────────┘└──────────────────────────────────────┤
                                      scores of one medium ── LayerNorm ── … x depth ───────────────────────────┘
```
Ids: those of the text, one of padding for each place of text, the codes: `parts.text_and_codes.sequence` writes them.
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.models._tasks import choose
from anyformer.parts import Block, GatedMLP, LayerNorm, LayerScale, Prefix, Strided, Tokens
from anyformer.parts.attention.masks import Mask
from anyformer.parts.text_and_codes import Corner, Line, OneMedium, Shifted, ThreeRotary, TurnedAttention
from anyformer.skeletons.drawer import Drawer


@dataclass(frozen=True)
class DallE:
    dim: int = 512
    depth: int = 12
    heads: int = 8
    head_dim: int = 64
    vocab: int = 10000  # ids of the text; 0 is padding
    text: int = 256  # places of the text
    codes: int = 8192
    columns: int = 32  # of the grid, which is square
    views: tuple[str, ...] = ("full",)  # of the blocks in turns: full, row, column, square
    square: int = 5  # cells of its edge
    shift: bool = True
    sandwich: bool = False
    dropout: float = 0.0


def dalle(c: DallE) -> Recipe:
    first, ids, norm = c.text + 1, c.vocab + c.text, LayerNorm.of(eps=1e-5)
    near = {"row": Line(first, c.columns), "column": Strided(c.columns), "square": Corner(first, c.columns, c.square)}
    known = {"full": None, **{name: Prefix(first) | mask for name, mask in near.items()}}
    masks = [choose("dalle", "views", c.views[i % len(c.views)], known) for i in range(c.depth)]
    rotary = ThreeRotary.of(first=first, columns=c.columns)
    head = OneMedium.of(vocab=ids + c.codes, codes=ids, first=first, bias=True)
    context = c.text + c.columns**2
    starts = [0.1 if i < 18 else 1e-5 if i < 24 else 1e-6 for i in range(c.depth)]
    layers = [layer(c, mask, rotary, norm, start) for mask, start in zip(masks, starts, strict=True)]
    blocks = [block for some in layers for block in some]
    return Drawer.of(c.dim, Tokens.of(vocab=ids + c.codes), blocks, norm=norm, head=head, context=context)


def layer(c: DallE, mask: Mask | None, rotary: Recipe, norm: Recipe, start: float) -> list[Recipe]:
    mixer = TurnedAttention.of(heads=c.heads, head_dim=c.head_dim, mask=mask, positions=rotary)
    ffn = GatedMLP.of(hidden=4 * c.dim, act="gelu", bias=True, dropout=c.dropout)
    wiring, scale = "sandwich" if c.sandwich else "pre", LayerScale.of(start)
    if not c.shift:
        return [Block.of(mixer=mixer, ffn=ffn, norm=norm, wiring=wiring, scale=scale)]
    shifted = [Shifted.of(inside=part, first=c.text + 1, columns=c.columns) for part in (mixer, ffn)]
    return [Block.of(mixer=part, norm=norm, wiring=wiring, scale=scale) for part in shifted]


SIZES = {
    "tiny": DallE(
        dim=24,
        depth=4,
        heads=2,
        head_dim=14,
        vocab=40,
        text=5,
        codes=20,
        columns=4,
        views=("full", "row", "column", "square"),
        square=2,
    ),
    "mini": DallE(dim=192, depth=4, heads=4, head_dim=48, vocab=1024, text=24, codes=256, columns=8),
    "base": DallE(),
}
PARAMETERS = {"tiny": 43_169, "mini": 2_874_008, "base": 69_340_176}
CASES = {
    "plain": {"shift": False, "sandwich": True, "views": ("full",), "depth": 2},
    "other": {"dim": 32, "heads": 3, "head_dim": 8, "vocab": 33, "text": 7, "codes": 11, "columns": 5, "square": 3},
}
ORACLE = (
    "nobody published checkpoints in a common format; scores, losses and gradients are compared with dalle-pytorch "
    "1.6.6 on the same weights, for each kind of view (tests/parts/test_dalle.py)"
)
HUBS: tuple[Hub, ...] = ()
