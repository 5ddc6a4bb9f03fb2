"""CLIP (Radford et al., 2021; arXiv:2103.00020). Two towers, with similar vectors for a picture and its text.

The image tower differs from ViT by: a norm before the blocks, after them one of the class token only, patches without
bias, quick GELU. The text tower differs from GPT-2 by: its vector is that of the end token, quick GELU, no scores of
tokens.

```
pixels ── [class] + patches + place ── LayerNorm ── block x depth ── class token ── LayerNorm ── project ── / length ──┐
                                                                                      exp(scale) * image textᵀ ── (×)
tokens + place ── block, causal, x depth ── LayerNorm ── end token ── project ── / length ────────────────────────────┘

block:  ──┬─ LayerNorm ─ attention ─(+)─┬─ LayerNorm ─ MLP ─(+)──
          └────────────────────────┘   └───────────────┘
```
With `text=None` or `image=None` it is one tower only, whose head gives the vector before the division by its length.
"""

from dataclasses import dataclass, field

from anyformer.core.recipe import Recipe
from anyformer.hub.tables import clip as tables
from anyformer.hub.tables.config import key
from anyformer.hub.tables.nested import beside, within
from anyformer.hub.tables.weights import Hub, row
from anyformer.parts import MLP, At, Attention, Block, Entry, First, LayerNorm, Learned, Patches, Project, Tokens
from anyformer.parts.attention.masks import Causal, Mask
from anyformer.skeletons.dual_tower import DualTower
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class Tower:
    dim: int = 512
    depth: int = 12
    heads: int = 8
    hidden: int = 2048
    act: str = "quick_gelu"
    eps: float = 1e-5
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class Image(Tower):
    dim: int = 768
    heads: int = 12
    hidden: int = 3072
    image: int = 224
    patch: int = 32
    channels: int = 3


@dataclass(frozen=True)
class Text(Tower):
    vocab: int = 49408
    context: int = 77
    end: int | None = 49407  # the token whose vector is the text's; None: the one with the largest id


@dataclass(frozen=True)
class CLIP:
    image: Image | None = field(default_factory=Image)
    text: Text | None = field(default_factory=Text)
    width: int = 512  # of both towers' vectors
    scale: float = 2.6592  # initial value, as a logarithm


def clip(c: CLIP) -> Recipe:
    head = Project.of(width=c.width)
    towers = {"image": image_tower(c.image, {"image": head})} if c.image else {}
    towers |= {"text": text_tower(c.text, {"text": head})} if c.text else {}
    if not towers:
        raise ValueError("CLIP: image and text are both None; it has at least one tower")
    return DualTower.of(towers, scale=c.scale) if len(towers) == 2 else next(iter(towers.values()))


def image_tower(c: Image, heads: dict[str, Recipe]) -> Recipe:
    embed = Patches.of(image=c.image, patch=c.patch, channels=c.channels, bias=False)
    norm = LayerNorm.of(eps=c.eps)
    pool, entry = First.of(norm=norm), Entry.of(norm=norm)
    return Encoder.of(c.dim, embed, blocks(c), pool=pool, heads=heads, entry=entry)


def text_tower(c: Text, heads: dict[str, Recipe]) -> Recipe:
    embed = Tokens.of(vocab=c.vocab, positions=Learned.of(context=c.context))
    norm, pool = LayerNorm.of(eps=c.eps), At.of(end=c.end)
    return Encoder.of(c.dim, embed, blocks(c, Causal()), norm=norm, pool=pool, heads=heads, context=c.context)


def blocks(c: Tower, mask: Mask | None = None) -> list[Recipe]:
    mixer = Attention.of(heads=c.heads, bias=True, out_bias=True, mask=mask, dropout=c.attention_dropout)
    ffn = MLP.of(hidden=c.hidden, act=c.act)
    return [Block.of(mixer=mixer, ffn=ffn, norm=LayerNorm.of(eps=c.eps))] * c.depth


SIZES = {
    "tiny": CLIP(
        image=Image(dim=32, depth=2, heads=4, hidden=64, image=16, patch=4),
        text=Text(dim=24, depth=2, heads=2, hidden=48, vocab=128, context=32, end=5),
        width=20,
    ),
    "mini": CLIP(
        image=Image(dim=128, depth=4, heads=4, hidden=512, image=32, patch=8),
        text=Text(dim=128, depth=4, heads=4, hidden=512, vocab=512, context=32, end=0),
        width=128,
    ),
    "b32": CLIP(),
    "b16": CLIP(image=Image(patch=16)),
    "l14": CLIP(
        image=Image(dim=1024, depth=24, heads=16, hidden=4096, patch=14),
        text=Text(dim=768, heads=12, hidden=3072),
        width=768,
    ),
}
PARAMETERS = {"tiny": 34_081, "mini": 1_716_225, "b32": 151_277_313, "b16": 149_620_737, "l14": 427_616_513}
CASES = {
    "image": {"text": None},
    "text": {"image": None},
    "odd": {
        "image.dim": 30,
        "image.heads": 3,
        "image.hidden": 50,
        "image.image": 15,
        "image.patch": 5,
        "image.channels": 1,
        "image.act": "gelu",
        "image.eps": 1e-3,
        "text.dim": 36,
        "text.depth": 1,
        "text.heads": 3,
        "text.hidden": 20,
        "text.vocab": 99,
        "text.context": 40,
        "text.end": 7,
        "text.act": "gelu_tanh",
        "text.eps": 1e-4,
        "width": 16,
        "scale": 3.5,
    },
    "largest": {"text.end": None, "image.depth": 1, "scale": 3.0},
}


def first_weights(c: CLIP) -> dict[str, float]:
    """The sizes by width and depth of each tower: the output projection of attention has the largest."""
    towers = {"image": c.image, "text": c.text}
    sizes: dict[str, float] = {}
    for name, tower in towers.items():
        if tower is None:
            continue
        prefix = f"towers.{name}." if all(towers.values()) else ""
        wide, inner = tower.dim**-0.5, (tower.dim * 2 * tower.depth) ** -0.5
        sizes |= {f"{prefix}blocks.*.mixer.[qkv]": inner, f"{prefix}blocks.*.mixer.o": wide}
        sizes |= {f"{prefix}blocks.*.ffn.up": (2 * tower.dim) ** -0.5, f"{prefix}blocks.*.ffn.down": inner}
        sizes |= {f"{prefix}heads.{name}.proj": wide} | ({f"{prefix}embed.cls": wide} if name == "image" else {})
    return sizes


def _weights(c: CLIP) -> list:
    if c.image is None or c.text is None:
        return tables.image() if c.text is None else tables.text()
    return [row("logit_scale", "scale"), *tables.image("towers.image."), *tables.text("towers.text.")]


WIDTH = key("projection_dim", "width", default=512)
HUBS = (
    Hub(
        "clip",
        architectures={"CLIPModel": {}},
        weights=_weights,
        ignore=tables.PLACES,
        outputs={
            "logits_per_image": "logits",
            "image_embeds": "heads.image",
            "text_embeds": "heads.text",
            "vision_model_output.hidden_states": "towers.image",
            "text_model_output.hidden_states": "towers.text",
        },
        processor="CLIPImageProcessor",
        config=(
            within("vision_config", "image", Image, *tables.IMAGE, tables.WIDTH_ABOVE, also=("vision_config_dict",)),
            within("text_config", "text", Text, *tables.TEXT, tables.WIDTH_ABOVE, also=("text_config_dict",)),
            WIDTH,
            key("logit_scale_init_value", "scale", default=2.6592),
        ),
    ),
    Hub(
        "clip_vision_model",
        architectures={"CLIPVisionModelWithProjection": {"text": None}},
        weights=_weights,
        ignore=tables.PLACES,
        outputs={"image_embeds": "heads.image"},
        processor="CLIPImageProcessor",
        config=(beside("image", Image, *tables.IMAGE), WIDTH),
    ),
    Hub(
        "clip_text_model",
        architectures={"CLIPTextModelWithProjection": {"image": None}},
        weights=_weights,
        ignore=tables.PLACES,
        outputs={"text_embeds": "heads.text"},
        config=(beside("text", Text, *tables.TEXT), WIDTH),
    ),
)
