"""ViT (Dosovitskiy et al., 2020; arXiv:2010.11929). An encoder over patches of an image.

Differs from BERT by: patches instead of tokens, a class token, norms before the branches and one at the end.

```
pixels ── [class] + patches + place ──┬─ LayerNorm ─ attention ─(+)─┬─ LayerNorm ─ MLP ─(+)── … x depth ── LayerNorm ─┐
                                      └────────────────────────┘   └───────────────┘          classes ── class token ┘
```
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bert import ATTENTION, encoder_config
from anyformer.hub.tables.config import ACTS, ONE_VALUE, Lens, key, quiet, square
from anyformer.hub.tables.weights import Hub, Resample, row, under
from anyformer.models._tasks import Top, choose
from anyformer.parts import MLP, Attention, Block, Classifier, First, LayerNorm, Patches, Pooler
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class ViT:
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    image: int = 224
    patch: int = 16
    channels: int = 3
    act: str = "gelu"
    eps: float = 1e-12
    bias: bool = True  # of q, k and v
    dropout: float = 0.0
    attention_dropout: float = 0.0
    task: str = "classify"  # classify; none: hidden and pooled
    classes: int = 1000
    pool_act: str = "tanh"


def vit(c: ViT) -> Recipe:
    norm = LayerNorm.of(eps=c.eps)
    mixer = Attention.of(heads=c.heads, bias=c.bias, out_bias=True, dropout=c.attention_dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, dropout=c.dropout)
    embed = Patches.of(image=c.image, patch=c.patch, channels=c.channels, dropout=c.dropout)
    tasks = {
        "classify": Top({"classes": Classifier.of(classes=c.classes)}, First.of()),
        "none": Top({}, Pooler.of(act=c.pool_act)),
    }
    top = choose("vit", "task", c.task, tasks)
    return Encoder.of(c.dim, embed, [block] * c.depth, norm=norm, pool=top.pool, heads=top.heads)


SIZES = {
    "tiny": ViT(dim=32, depth=2, heads=4, hidden=64, image=16, patch=4, classes=10),
    "mini": ViT(dim=128, depth=4, heads=4, hidden=256, image=32, patch=4, classes=10),
    "b16": ViT(),
    "b32": ViT(patch=32),
    "l16": ViT(dim=1024, depth=24, heads=16, hidden=4096),
}
PARAMETERS = {"tiny": 19_626, "mini": 546_186, "b16": 86_567_656, "b32": 88_224_232, "l16": 304_326_632}
CASES = {
    "none": {"task": "none", "pool_act": "relu", "channels": 1},
    "odd": {
        "dim": 30,
        "heads": 3,
        "hidden": 50,
        "image": 15,
        "patch": 5,
        "bias": False,
        "act": "gelu_tanh",
        "classes": 3,
    },
}


def _weights(c: ViT) -> list:
    return [
        under(
            "vit.embeddings",
            "embed",
            row("cls_token", "cls"),
            row("patch_embeddings.projection", "project"),
            row("position_embeddings", "positions", Resample()),
        ),
        under(
            "vit.encoder.layer.{i}",
            "blocks.{i}",
            row("layernorm_before", "norm.mixer"),
            row("layernorm_after", "norm.ffn"),
            under("attention.attention", "mixer", *ATTENTION),
            row("attention.output.dense", "mixer.o"),
            row("intermediate.dense", "ffn.up"),
            row("output.dense", "ffn.down"),
        ),
        row("vit.layernorm", "norm"),
        row("vit.pooler.dense", "pool.dense"),
        row("classifier", "heads.classes.proj"),
    ]


def _pooled(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("pooler_output_size") not in (None, config.get("hidden_size")):
        raise ValueError(
            f"config key 'pooler_output_size' is {config['pooler_output_size']}; this page supports only hidden_size"
        )
    return {}


HUBS = (
    Hub(
        "vit",
        architectures={"ViTForImageClassification": {"task": "classify"}, "ViTModel": {"task": "none"}},
        base="vit.",
        processor="ViTImageProcessor",
        bare=("ViTModel",),
        weights=_weights,
        config=(
            *encoder_config(dropout=0.0),
            square("image_size", "image"),
            square("patch_size", "patch"),
            key("num_channels", "channels", default=3),
            key("qkv_bias", "bias", default=True),
            key("pooler_act", "pool_act", ACTS, default="tanh"),
            Lens(("pooler_output_size",), (), _pooled, lambda c: {"pooler_output_size": c.dim}, ONE_VALUE),
            quiet("encoder_stride", why="for masked image modelling, a head that the file does not have"),
        ),
    ),
)
