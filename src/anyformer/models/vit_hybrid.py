"""ViT hybrid (Dosovitskiy et al., 2020; arXiv:2010.11929). An encoder over the cells of a residual network.

Differs from ViT by: patches of one pixel in the maps of a Big Transfer network (Kolesnikov et al., 2019;
arXiv:1912.11370), whose convolutions have standardised filters and norms of groups.

```
pixels ── BiT, 16 pixels a cell ── 1 x 1 ── [class] + cells + place ──┬─ norm ─ attention ─(+)─┬─ norm ─ MLP ─(+)── …
                                                                      └────────────────────────┘└─────────────┘
```
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bert import ATTENTION, encoder_config
from anyformer.hub.tables.config import ACTS, ONE_VALUE, Lens, key, must, quiet, square
from anyformer.hub.tables.nested import within
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.parts import MLP, Attention, Block, LayerNorm, Pooler
from anyformer.parts.bit import BiT, HybridPatches, eighths
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class Net:
    stem: int = 64
    widths: tuple[int, ...] = (256, 512, 1024)
    depths: tuple[int, ...] = (3, 4, 9)
    groups: int = 32
    channels: int = 3


@dataclass(frozen=True)
class ViTHybrid:
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    image: int = 384
    act: str = "gelu"
    eps: float = 1e-12
    bias: bool = True  # of q, k and v
    dropout: float = 0.0
    attention_dropout: float = 0.0
    net: Net = field(default_factory=Net)
    pool_act: str = "tanh"


def vit_hybrid(c: ViTHybrid) -> Recipe:
    net = BiT.of(stem=c.net.stem, widths=c.net.widths, depths=c.net.depths, groups=c.net.groups)
    embed = HybridPatches.of(net=net, image=c.image, channels=c.net.channels)
    norm = LayerNorm.of(eps=c.eps)
    mixer = Attention.of(heads=c.heads, bias=c.bias, out_bias=True, dropout=c.attention_dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, dropout=c.dropout)
    return Encoder.of(c.dim, embed, [block] * c.depth, norm=norm, pool=Pooler.of(act=c.pool_act))


SIZES = {
    "tiny": ViTHybrid(
        dim=16,
        depth=2,
        heads=4,
        hidden=24,
        image=32,
        net=Net(stem=4, widths=(8, 8, 16), depths=(1, 2, 1), groups=2),
    ),
    "mini": ViTHybrid(
        dim=128,
        depth=4,
        heads=4,
        hidden=256,
        image=64,
        net=Net(stem=16, widths=(32, 64, 96), depths=(1, 1, 1), groups=8),
    ),
    "b": ViTHybrid(),
}
PARAMETERS = {"tiny": 8_532, "mini": 587_280, "b": 98_772_544}
CASES = {
    "odd": {
        "dim": 30,
        "depth": 1,
        "heads": 3,
        "hidden": 50,
        "image": 48,
        "act": "gelu_tanh",
        "eps": 1e-3,
        "bias": False,
        "net.stem": 6,
        "net.widths": (16, 8, 24),
        "net.depths": (2, 1, 1),
        "net.groups": 1,
        "net.channels": 1,
        "pool_act": "relu",
    },
}


def first_weights(c: ViTHybrid) -> dict[str, float]:
    """Convolutions by the channels that leave them (He et al., 2015; arXiv:1502.01852); all matrices with 0.02."""
    sizes = {"embed.net.stem.conv": (2 / c.net.stem / 49) ** 0.5, "blocks.*.mixer.o": 0.02, "blocks.*.ffn.down": 0.02}
    for stage, width in enumerate(c.net.widths):
        path, inner = f"embed.net.stages.{stage}.*", eighths(width / 4)
        outputs = {"units.0": inner, "units.1": 9 * inner, "units.2": width, "shortcut": width}
        sizes |= {f"{path}.{unit}.conv": (2 / count) ** 0.5 for unit, count in outputs.items()}
    return sizes


def _weights(c: ViTHybrid) -> list:
    return [
        under(
            "embeddings",
            "embed",
            row("cls_token", "cls"),
            row("position_embeddings", "positions"),
            row("projection", "project"),
            row("backbone.bit.embedder.convolution", "net.stem.conv"),
            row("backbone.bit.embedder.norm", "net.stem.norm"),
            under("backbone.bit.encoder.stages.{s}.layers.{i}", "net.stages.{s}.{i}", *_layer()),
        ),
        under(
            "encoder.layer.{i}",
            "blocks.{i}",
            row("layernorm_before", "norm.mixer"),
            row("layernorm_after", "norm.ffn"),
            under("attention.attention", "mixer", *ATTENTION),
            row("attention.output.dense", "mixer.o"),
            row("intermediate.dense", "ffn.up"),
            row("output.dense", "ffn.down"),
        ),
        row("layernorm", "norm"),
        row("pooler.dense", "pool.dense"),
    ]


def _layer() -> list:
    units = [row(f"conv{i + 1}", f"units.{i}.conv") for i in range(3)]
    units += [row(f"norm{i + 1}", f"units.{i}.norm") for i in range(3)]
    return [*units, row("downsample.conv", "shortcut.conv"), row("downsample.norm", "shortcut.norm")]


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for a projection from another width than the network's, and for cells of other sizes."""
    shape, widths = config.get("backbone_featmap_shape"), (config.get("backbone_config") or {}).get("hidden_sizes")
    if shape is not None and widths and shape[1] != widths[-1]:
        raise ValueError(f"'backbone_featmap_shape' has {shape[1]} channels, and the network's last stage {widths[-1]}")
    if config.get("patch_size") not in (None, 16, [16, 16]):
        raise ValueError(f"'patch_size' is {config['patch_size']}; the network makes a cell of 16 pixels")
    return {}


def _write_shape(c: ViTHybrid) -> dict[str, Any]:
    cells = -(-c.image // 16)
    return {"backbone_featmap_shape": [1, c.net.widths[-1], cells, cells], "patch_size": 16}


def _pooled(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("pooler_output_size") not in (None, config.get("hidden_size")):
        raise ValueError(
            f"config key 'pooler_output_size' is {config['pooler_output_size']}; this page supports only hidden_size"
        )
    return {}


def _padding(config: Mapping[str, Any]) -> dict[str, Any]:
    if str(config.get("global_padding")).lower() != "same":
        raise ValueError(f"config key 'global_padding' is {config.get('global_padding')!r}; this page supports 'same'")
    return {}


def _write_padding(c: Net) -> dict[str, Any]:
    return {"global_padding": "same", "out_features": [f"stage{i + 1}" for i in range(len(c.depths))]}


def _channels(config: Mapping[str, Any]) -> dict[str, Any]:
    there = (config.get("backbone_config") or {}).get("num_channels", 3)
    if config.get("num_channels", 3) != there:
        raise ValueError(f"'num_channels' is {config.get('num_channels')}, and in 'backbone_config' {there}")
    return {}


DEPTH = "for maps of depth: a neck and a head that this page has not"
NETWORK = (
    must("model_type", "bit", absent=False),
    key("embedding_size", "stem", default=64),
    key("hidden_sizes", "widths", default=(256, 512, 1024)),
    key("depths", "depths", default=(3, 4, 9)),
    key("num_groups", "groups", default=32),
    key("num_channels", "channels", default=3),
    must("layer_type", "bottleneck", absent=False),
    must("embedding_dynamic_padding", True, absent=False),
    must("hidden_act", "relu"),
    must("drop_path_rate", 0.0),
    must("output_stride", 32),
    must("width_factor", 1),
    Lens(("global_padding", "out_features"), (), _padding, _write_padding, ONE_VALUE),
    quiet("out_indices", "stage_names", why="follows from 'depths'"),
)
HUBS = (
    Hub(
        "dpt",
        architectures={"DPTModel": {}},
        weights=_weights,
        processor="DPTImageProcessor",
        config=(
            *encoder_config(dropout=0.0)[:-1],  # without classes
            must("is_hybrid", True, absent=False),
            square("image_size", "image", default=384),
            key("qkv_bias", "bias", default=True),
            key("pooler_act", "pool_act", ACTS, default="tanh"),
            within("backbone_config", "net", Net, *NETWORK),
            Lens(("backbone_featmap_shape", "patch_size"), (), _shape, _write_shape, ONE_VALUE),
            Lens(("pooler_output_size",), (), _pooled, lambda c: {"pooler_output_size": c.dim}, ONE_VALUE),
            Lens(("num_channels",), (), _channels, lambda c: {"num_channels": c.net.channels}, ONE_VALUE),
            quiet("backbone_out_indices", "readout_type", "reassemble_factors", "neck_hidden_sizes", why=DEPTH),
            quiet("fusion_hidden_size", "head_in_index", "use_batch_norm_in_fusion_residual", why=DEPTH),
            quiet("use_bias_in_fusion_residual", "add_projection", "use_auxiliary_head", why=DEPTH),
            quiet("auxiliary_loss_weight", "semantic_loss_ignore_index", "semantic_classifier_dropout", why=DEPTH),
            quiet("neck_ignore_stages", why=DEPTH),
        ),
    ),
)
