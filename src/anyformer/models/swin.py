"""Swin (Liu et al., 2021; arXiv:2103.14030). A pyramid over an image: attention in windows, in stages of grids.

Differs from ViT by: no class token, but the mean of the last grid; attention in windows, shifted in every second block;
a bias by distance on the grid instead of positions; between two stages four cells become one, twice as wide.

```
pixels ── patches ── LayerNorm ── block x depths[0] ── merge ── block x depths[1] ── … ── LayerNorm ── mean ── classes
                                  R x S cells, D       R/2 x S/2 cells, 2 D

block:  ──┬─ LayerNorm ─ attention in windows + bias ─(+)─┬─ LayerNorm ─ MLP ─(+)──     0, 2 …: windows at the edge
          └───────────────────────────────────────────────┘└──────────────────┘         1, 3 …: shifted by half a window
```
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bert import ATTENTION
from anyformer.hub.tables.config import ACTS, CLASSES, Lens, key, quiet, square
from anyformer.hub.tables.weights import Hub, Resample, row, under
from anyformer.models._tasks import Top, choose
from anyformer.parts import (
    MLP,
    Attention,
    Block,
    Classifier,
    GridBias,
    LayerNorm,
    Mean,
    Merge,
    PatchGrid,
    StochasticDepth,
    Windows,
)
from anyformer.skeletons.pyramid import Pyramid
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class Swin:
    dim: int = 96  # of the first stage
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    ratio: float = 4.0  # of the MLP's inner width
    image: int = 224
    patch: int = 4
    channels: int = 3
    act: str = "gelu"
    eps: float = 1e-5
    bias: bool = True  # of q, k and v
    absolute: bool = False  # a learned vector for each cell, too
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.1  # the share of rows that skip the last block's branches; the first block's is 0
    task: str = "classify"  # classify; none: hidden and pooled
    classes: int = 1000


def swin(c: Swin) -> Recipe:
    if len(c.depths) != len(c.heads):
        raise ValueError(f"swin: depths and heads have one number a stage each; got {c.depths} and {c.heads}")
    embed = PatchGrid.of(
        image=c.image,
        patch=c.patch,
        channels=c.channels,
        norm=LayerNorm.of(),
        positions=c.absolute,
        dropout=c.dropout,
    )
    stages = [Stack.of([block(c, stage, i) for i in range(depth)]) for stage, depth in enumerate(c.depths)]
    tasks = {"classify": Top({"classes": Classifier.of(classes=c.classes)}), "none": Top({})}
    heads = choose("swin", "task", c.task, tasks).heads
    merge, norm = Merge.of(norm=LayerNorm.of()), LayerNorm.of(eps=c.eps)
    return Pyramid.of(c.dim, embed, stages, merge, norm=norm, pool=Mean.of(), heads=heads)


def block(c: Swin, stage: int, i: int) -> Recipe:
    inside = Attention.of(
        heads=c.heads[stage],
        bias=c.bias,
        out_bias=True,
        scores=[GridBias.of(side=c.window)],
        dropout=c.attention_dropout,
    )
    mixer = Windows.of(inside=inside, window=c.window, shift=c.window // 2 if i % 2 else 0)
    ffn = MLP.of(hidden=int(c.ratio * c.dim * 2**stage), act=c.act)
    rate = c.drop_path * (sum(c.depths[:stage]) + i) / max(1, sum(c.depths) - 1)
    scale = StochasticDepth.of(rate=rate) if rate else None
    return Block.of(mixer=mixer, ffn=ffn, norm=LayerNorm.of(eps=c.eps), dropout=c.dropout, scale=scale)


SIZES = {
    "tiny": Swin(dim=16, depths=(2, 1), heads=(4, 2), window=3, image=24, drop_path=0.0, classes=10),
    "mini": Swin(
        dim=64, depths=(2, 2), heads=(2, 4), window=4, ratio=2.0, image=32, patch=2, drop_path=0.0, classes=10
    ),
    "t": Swin(),
    "s": Swin(depths=(2, 2, 18, 2)),
    "b": Swin(dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    "l": Swin(dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48)),
}
PARAMETERS = {"tiny": 22_900, "mini": 368_278, "t": 28_288_354, "s": 49_606_258, "b": 87_768_224, "l": 196_532_476}
CASES = {
    "none": {"task": "none", "channels": 1, "absolute": True, "bias": False},
    "odd": {
        "dim": 12,
        "depths": (1, 2, 1),
        "heads": (3, 2, 4),
        "window": 4,
        "ratio": 1.5,
        "image": 37,
        "patch": 2,
        "eps": 1e-3,
        "act": "gelu_tanh",
        "classes": 3,
    },
}


def _weights(c: Swin) -> list:
    return [
        under(
            "swin.embeddings",
            "embed",
            row("patch_embeddings.projection", "project"),
            row("norm", "norm"),
            row("position_embeddings", "positions", Resample(first=0)),
        ),
        under(
            "swin.encoder.layers.{s}.blocks.{i}",
            "stages.{s}.blocks.{i}",
            row("layernorm_before", "norm.mixer"),
            row("layernorm_after", "norm.ffn"),
            under("attention.self", "mixer.inside", *ATTENTION),
            row("attention.self.relative_position_bias_table", "mixer.inside.scores.0.table"),
            row("attention.output.dense", "mixer.inside.o"),
            row("intermediate.dense", "ffn.up"),
            row("output.dense", "ffn.down"),
        ),
        under(
            "swin.encoder.layers.{s}.downsample",
            "merges.{s}",
            row("norm", "norm"),
            row("reduction", "reduce"),
        ),
        row("swin.layernorm", "norm"),
        row("classifier", "heads.classes.proj"),
    ]


def _check_stages(config: Mapping[str, Any]) -> dict[str, Any]:
    depths, dim = config.get("depths", Swin.depths), config.get("embed_dim", Swin.dim)
    for name, value in _derived(depths, dim).items():
        if config.get(name) not in (None, value):
            raise ValueError(
                f"config key {name!r} is {config[name]!r}; by depths={depths} and embed_dim={dim} it is {value}"
            )
    return {}


def _write_stages(c: Swin) -> dict[str, Any]:
    return _derived(c.depths, c.dim)


def _derived(depths: Sequence[int], dim: int) -> dict[str, Any]:
    return {"num_layers": len(depths), "hidden_size": dim * 2 ** (len(depths) - 1)}


INDEX = "the entry of the table for each pair of cells, which follows from the size of the window"
DERIVED = "follows from 'depths' and 'embed_dim', and agrees with them"
FEATURES = "the stages that a backbone returns to another model; an output's `maps` are all of them"
HUBS = (
    Hub(
        "swin",
        architectures={"SwinForImageClassification": {"task": "classify"}, "SwinModel": {"task": "none"}},
        base="swin.",
        processor="ViTImageProcessor",
        bare=("SwinModel",),
        weights=_weights,
        ignore={"swin.encoder.layers.{s}.blocks.{i}.attention.self.relative_position_index": INDEX},
        outputs={"hidden_states": "stages"},
        config=(
            key("embed_dim", "dim", default=96),
            key("depths", "depths", default=(2, 2, 6, 2)),
            key("num_heads", "heads", default=(3, 6, 12, 24)),
            key("window_size", "window", default=7),
            key("mlp_ratio", "ratio", default=4.0),
            square("image_size", "image", default=224),
            square("patch_size", "patch", default=4),
            key("num_channels", "channels", default=3),
            key("hidden_act", "act", ACTS, default="gelu"),
            key("layer_norm_eps", "eps", default=1e-5),
            key("qkv_bias", "bias", default=True),
            key("use_absolute_embeddings", "absolute", default=False),
            key("hidden_dropout_prob", "dropout", default=0.0),
            key("attention_probs_dropout_prob", "attention_dropout", default=0.0),
            key("drop_path_rate", "drop_path", default=0.1),
            CLASSES,
            Lens(("num_layers", "hidden_size"), (), _check_stages, _write_stages, DERIVED),
            quiet("encoder_stride", why="for masked image modelling, a head that this file does not have"),
            quiet("out_features", "out_indices", "stage_names", why=FEATURES),
            quiet("path_norm", why="left over from the authors' code, which no published class reads"),
        ),
    ),
)
