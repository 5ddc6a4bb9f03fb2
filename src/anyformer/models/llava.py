"""LLaVA 1.5 (Liu et al., 2023; arXiv:2310.03744). A decoder of text that sees pictures in the middle of it.

Differs from LLaMA, Mistral and Qwen2 by: in place of each run of placeholders stand the patches of a picture, out of
a tower of CLIP, read before its last block, through an MLP of two layers.

```
pixels ── [class] + patches + place ── LayerNorm ── block x (depth - 1) ── patches ── MLP ────────────┐ <image>
ids ── token ─────────────────────────────────────────────────────────────────────────────────────────┴─ LLaMA …
```
Files keep the blocks and the norm behind the layer that is read; nothing computes them.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables import llava as tables
from anyformer.hub.tables.config import ACTS, key
from anyformer.hub.tables.nested import within
from anyformer.hub.tables.weights import Hub
from anyformer.models._tasks import choose
from anyformer.models.clip import Image, blocks
from anyformer.models.llama import Llama, llama
from anyformer.models.qwen2 import Qwen2, qwen2
from anyformer.parts import Entry, First, LayerNorm, Patches, Projector
from anyformer.parts.heads import Kept
from anyformer.parts.positions import Linear, Scaling
from anyformer.skeletons.encoder import Encoder
from anyformer.skeletons.media import Medium
from anyformer.skeletons.spliced import with_media


@dataclass(frozen=True)
class Tower(Image):
    dim: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 4096
    image: int = 336
    patch: int = 14


@dataclass(frozen=True)
class Text:
    family: str = "llama"  # or mistral, which can have a window, or qwen2: biases of q, k and v
    dim: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int | None = None  # dim / heads
    hidden: int = 11008
    act: str = "silu"
    vocab: int = 32064
    context: int = 4096
    eps: float = 1e-5
    theta: float = 10000.0
    scaling: Scaling | None = None
    window: int | None = None
    window_from: int = 28  # of qwen2
    bias: bool = False  # in attention
    ffn_bias: bool = False
    tied: bool = False
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class LLaVA:
    image: Tower = field(default_factory=Tower)
    text: Text = field(default_factory=Text)
    token: int = 32000  # the placeholder
    unread: int = 1  # blocks at the end of the tower that are kept and not computed
    cls: bool = False  # the class token is read, too
    act: str = "gelu"  # of the projector
    bias: bool = True  # of the projector


def llava(c: LLaVA) -> Recipe:
    project = Projector.of(act=c.act, bias=c.bias)
    return with_media(
        text(c.text),
        image=Medium.of(c.token, tower(c.image, c.unread), project, cut=0 if c.cls else 1),
    )


def text(c: Text) -> Recipe:
    known: dict[str, tuple[Any, Any]] = {"llama": (Llama, llama), "mistral": (Llama, llama), "qwen2": (Qwen2, qwen2)}
    kind, page = choose("LLaVA", "text.family", c.family, known)
    given = {f.name: getattr(c, f.name) for f in fields(c) if f.name != "family"}
    own = {f.name for f in fields(kind)}
    if idle := [f.name for f in fields(c) if f.name in given and f.name not in own and given[f.name] != f.default]:
        raise ValueError(f"LLaVA: text.family={c.family!r} has no {', '.join(idle)}")
    return page(kind(**{name: value for name, value in given.items() if name in own}))


def tower(c: Tower, unread: int) -> Recipe:
    if unread > c.depth:
        raise ValueError(f"LLaVA: unread is {unread}, and the tower has {c.depth} blocks")
    embed = Patches.of(image=c.image, patch=c.patch, channels=c.channels, bias=False)
    norm, every, read = LayerNorm.of(eps=c.eps), blocks(c), c.depth - unread
    stack = [*every[:read], *map(Kept.of, every[read:])]
    return Encoder.of(c.dim, embed, stack, pool=Kept.of(First.of(norm=norm)), entry=Entry.of(norm=norm))


_tiny = LLaVA(
    image=Tower(dim=32, depth=2, heads=4, hidden=48, image=8, patch=4),
    text=Text(dim=24, depth=2, heads=4, kv_heads=2, hidden=40, vocab=128, context=64, window_from=28),
    token=127,
)
SIZES = {
    "tiny": _tiny,
    "mini": LLaVA(
        image=Tower(dim=128, depth=4, heads=4, hidden=512, image=32, patch=8),
        text=Text(dim=192, depth=4, heads=4, kv_heads=4, hidden=512, vocab=1024, context=256, tied=True),
        token=1024,
    ),
    "1.5-7b": LLaVA(),
    "1.5-13b": LLaVA(text=Text(dim=5120, depth=40, heads=40, kv_heads=40, hidden=13824)),
}
PARAMETERS = {"tiny": 26_168, "mini": 2_651_584, "1.5-7b": 7_050_828_800, "1.5-13b": 13_338_896_384}
CASES = {
    "class token": {"cls": True, "image.depth": 3, "text.depth": 1, "text.scaling": Linear(4.0)},
    "tied": {"text.tied": True, "bias": False},
    "Mistral": {"text.family": "mistral", "text.window": 6, "text.depth": 1},
    "Qwen2": {"text.family": "qwen2", "text.window": 5, "text.window_from": 1, "text.head_dim": 8},
    "last layer": {"unread": 0, "image.image": 6, "image.patch": 3, "image.channels": 1, "act": "relu", "token": 121},
    "second layer": {
        "unread": 2,
        "image.depth": 3,
        "image.dim": 30,
        "image.heads": 3,
        "image.hidden": 50,
        "image.act": "gelu",
        "image.eps": 1e-3,
        "text.dim": 33,
        "text.head_dim": 12,
        "text.heads": 3,
        "text.kv_heads": 1,
        "text.hidden": 20,
        "text.vocab": 99,
        "text.eps": 1e-4,
        "text.theta": 500.0,
        "token": 98,
    },
}


def first_weights(c: LLaVA) -> dict[str, float]:
    """CLIP's sizes in the tower; in the text all matrices have one."""
    wide, inner = c.image.dim**-0.5, (c.image.dim * 2 * c.image.depth) ** -0.5
    tower = {"mixer.[qkv]": inner, "mixer.o": wide, "ffn.up": (2 * c.image.dim) ** -0.5, "ffn.down": inner}
    sizes = {f"media.image.tower.blocks.*.{name}": size for name, size in tower.items()}
    return sizes | {"media.image.tower.embed.cls": wide, "blocks.*.mixer.o": 0.02, "blocks.*.ffn.down": 0.02}


HUBS = (
    Hub(
        "llava",
        architectures={"LlavaForConditionalGeneration": {}},
        weights=tables.weights,
        ignore=tables.PLACES,
        processor="CLIPImageProcessor",
        around=tables.around,
        config=(
            within("vision_config", "image", Tower, *tables.IMAGE),
            tables.language("text", Text),
            tables.TOKEN,
            tables.LAYER,
            key("vision_feature_select_strategy", "cls", {"default": False, "full": True}, default="default"),
            key("projector_hidden_act", "act", ACTS, default="gelu"),
            key("multimodal_projector_bias", "bias", default=True),
            tables.LENGTH,
            tables.LOSS,
            tables.VOCAB,
        ),
    ),
)
