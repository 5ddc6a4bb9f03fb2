"""DETR (Carion et al., 2020; arXiv:2005.12872). Objects of a picture as a set: boxes and classes, without any order.

Differs from the 2017 Transformer by: the source is the cells of a convolutional network; the target is a fixed number
of queries, which see each other in both directions; places are added in every layer, to what q and k are made of.

```
pixels ── ResNet ── 1 x 1 ── block x depth ── memory ─────────────────┐           ┌─ classes + 1: the last is no object
          R x C cells        │ places: sines of the cell's share      │ cross     │
                             └─────────────────────────────────────── block x decoder_depth ── norm ── boxes
                                0, places: a vector of each query ───┘

block:  ──┬─ attention ─(+)─ norm ─┬─ cross-attention (decoder) ─(+)─ norm ─┬─ MLP ─(+)─ norm ──
          └─────────────┘          └────────────────────────────┘           └───────┘
```
Published files have frozen norms, whose statistics come from the files; a model from scratch takes norm="group".
"""

from dataclasses import dataclass, field

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import ACTS, CLASSES, key, must, quiet
from anyformer.hub.tables.resnet import KEYS, TIMM, Backbone, rows
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._tasks import choose
from anyformer.parts import MLP, Attention, Block, Classifier, LayerNorm
from anyformer.parts.boxes import Boxes
from anyformer.parts.convnet import BatchNorm, ConvNet, FrozenNorm, GroupNorm
from anyformer.parts.features import Features
from anyformer.parts.places import GridTable, Queries, ShareSines
from anyformer.skeletons.query_decoder import QueryDecoder
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class ResNet:
    stem: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    kind: str = "bottleneck"  # or basic
    first_stride: bool = False  # the first stage halves the picture, too
    early: bool = False  # a bottleneck halves it in its first convolution
    dilated: bool = False  # the last stage looks at every second cell instead of halving it (DC5)
    channels: int = 3


@dataclass(frozen=True)
class DETR:
    dim: int = 256
    queries: int = 100  # the most objects of a picture
    depth: int = 6
    decoder_depth: int = 6
    heads: int = 8
    decoder_heads: int = 8
    hidden: int = 2048
    decoder_hidden: int = 2048
    act: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    places: str = "sine"  # of the cells; or learned, up to 50 x 50
    norm: str = "frozen"  # of the ResNet; group or batch where it is trained from scratch
    net: ResNet = field(default_factory=ResNet)
    task: str = "detect"  # detect; none: hidden states of the queries
    classes: int = 91  # without "no object"


def detr(c: DETR) -> Recipe:
    places = choose("detr", "places", c.places, {"sine": ShareSines.of(), "learned": GridTable.of()})
    embed = Features.of(net=convnet(c), places=places, channels=c.net.channels, dropout=c.dropout)
    heads = {"classes": Classifier.of(classes=c.classes + 1, each=True), "boxes": Boxes.of()}
    return QueryDecoder.of(
        c.dim,
        embed,
        encoder=Stack.of([block(c, c.heads, c.hidden)] * c.depth),
        decoder=Stack.of([block(c, c.decoder_heads, c.decoder_hidden, True)] * c.decoder_depth, norm=LayerNorm.of()),
        queries=Queries.of(count=c.queries),
        heads=choose("detr", "task", c.task, {"detect": heads, "none": {}}),
    )


def convnet(c: DETR) -> Recipe:
    norms = {"frozen": FrozenNorm.of(), "group": GroupNorm.of(), "batch": BatchNorm.of()}
    norm, net = choose("detr", "norm", c.norm, norms), c.net
    return ConvNet.of(norm, net.stem, net.widths, net.depths, net.kind, net.first_stride, net.early, net.dilated)


def block(c: DETR, heads: int, hidden: int, decoder: bool = False) -> Recipe:
    mixer = Attention.of(heads=heads, dropout=c.attention_dropout)
    cross = Attention.of(heads=heads, dropout=c.attention_dropout, cross=True) if decoder else None
    ffn = MLP.of(hidden=hidden, act=c.act, dropout=c.activation_dropout)
    return Block.of(mixer=mixer, cross=cross, ffn=ffn, norm=LayerNorm.of(), wiring="post", dropout=c.dropout)


SIZES = {
    "tiny": DETR(
        dim=16,
        queries=5,
        depth=1,
        decoder_depth=1,
        heads=4,
        decoder_heads=2,
        hidden=24,
        decoder_hidden=20,
        dropout=0.0,
        net=ResNet(stem=6, widths=(8, 12), depths=(1, 1)),
        classes=3,
    ),
    "mini": DETR(
        dim=96,
        queries=16,
        depth=2,
        decoder_depth=3,
        heads=4,
        decoder_heads=4,
        hidden=192,
        decoder_hidden=192,
        dropout=0.0,
        norm="group",
        net=ResNet(stem=24, widths=(32, 64), depths=(1, 2), kind="basic"),
        classes=10,
    ),
    "r50": DETR(),
    "r101": DETR(net=ResNet(depths=(3, 4, 23, 3))),
}
PARAMETERS = {"tiny": 7_139, "mini": 666_663, "r50": 41_524_768, "r101": 60_464_672}
CASES = {
    "none": {"task": "none", "net.channels": 1, "places": "learned"},
    "odd": {
        "dim": 12,
        "queries": 3,
        "depth": 2,
        "decoder_depth": 2,
        "heads": 3,
        "decoder_heads": 6,
        "hidden": 10,
        "decoder_hidden": 30,
        "act": "gelu",
        "net.stem": 5,
        "net.widths": (5, 7, 8),
        "net.depths": (2, 1, 1),
        "net.kind": "basic",
        "net.first_stride": True,
        "classes": 2,
    },
    "early": {"net.early": True, "net.widths": (16, 24), "net.depths": (1, 1), "places": "learned"},
}


def first_weights(c: DETR) -> dict[str, float]:
    """The sizes of the authors' code for a model from scratch; 0.02, as transformers has it, where files replace them.

    Queries differ by their places alone: with 0.02 all of them would begin with one answer.
    """
    if c.norm == "frozen":
        return {}
    sizes = {"queries": 1.0, "heads.classes.proj": (3 * c.dim) ** -0.5, "heads.boxes.layers.*": (3 * c.dim) ** -0.5}
    sizes |= {"embed.project": (3 * c.net.widths[-1]) ** -0.5}
    for stack, hidden in (("encoder", c.hidden), ("decoder", c.decoder_hidden)):
        inner = (2 / (c.dim + hidden)) ** 0.5
        sizes |= {f"{stack}.blocks.*.{name}.[qkv]": (2 * c.dim) ** -0.5 for name in ("mixer", "cross")}
        sizes |= {f"{stack}.blocks.*.{name}.o": c.dim**-0.5 for name in ("mixer", "cross")}
        sizes |= {f"{stack}.blocks.*.ffn.*": inner}
    return sizes


def _weights(c: DETR) -> list:
    backbone = "model.backbone.conv_encoder.model"
    return [
        *rows(backbone, "embed.net", c.net.depths, c.net.kind),
        row("model.input_projection", "embed.project"),
        row("model.position_embedding.row_embeddings.weight", "embed.places.rows"),
        row("model.position_embedding.column_embeddings.weight", "embed.places.columns"),
        row("model.query_position_embeddings", "queries"),
        under("model.encoder.layers.{i}", "encoder.blocks.{i}", *_block()),
        under("model.decoder.layers.{i}", "decoder.blocks.{i}", *_block(), *_attention("encoder_attn", "cross")),
        row("model.decoder.layernorm", "decoder.norm"),
        row("class_labels_classifier", "heads.classes.proj"),
        row("bbox_predictor.layers.{i}", "heads.boxes.layers.{i}"),
    ]


def _block() -> list:
    mixer = _attention("self_attn", "mixer")
    return [*mixer, row("fc1", "ffn.up"), row("fc2", "ffn.down"), row("final_layer_norm", "norm.ffn")]


def _attention(theirs: str, ours: str) -> list:
    names = (row("q_proj", "q"), row("k_proj", "k"), row("v_proj", "v"), row("out_proj", "o"))
    return [*under(theirs, ours, *names), row(f"{theirs}_layer_norm", f"norm.{ours}")]


LOSS = "the loss of training, of which `train.set_prediction` has the published values"
EARLIER = "theirs norms the stream itself after each block; here training reads earlier blocks, and the stream stays"
HUBS = (
    Hub(
        "detr",
        architectures={
            "DetrForObjectDetection": {"task": "detect", "norm": "frozen"},
            "DetrModel": {"task": "none", "norm": "frozen"},
        },
        base="model.",
        bare=("DetrModel",),
        weights=_weights,
        outputs={"logits": "heads.classes", "pred_boxes": "heads.boxes"},
        processor="DetrImageProcessor",
        config=(
            key("d_model", "dim", default=256),
            key("num_queries", "queries", default=100),
            key("encoder_layers", "depth", default=6),
            key("decoder_layers", "decoder_depth", default=6),
            key("encoder_attention_heads", "heads", default=8),
            key("decoder_attention_heads", "decoder_heads", default=8),
            key("encoder_ffn_dim", "hidden", default=2048),
            key("decoder_ffn_dim", "decoder_hidden", default=2048),
            key("activation_function", "act", ACTS, default="relu"),
            key("dropout", "dropout", default=0.1),
            key("attention_dropout", "attention_dropout", default=0.0),
            key("activation_dropout", "activation_dropout", default=0.0),
            key("position_embedding_type", "places", {"sine": "sine", "learned": "learned"}, default="sine"),
            Backbone(("backbone_config", *TIMM), ("net",), dict, dict, cls=ResNet, entries=KEYS),
            CLASSES,
            must("encoder_layerdrop", 0.0),
            must("decoder_layerdrop", 0.0),
            quiet("auxiliary_loss", why=EARLIER),
            quiet("class_cost", "bbox_cost", "giou_cost", "eos_coefficient", why=LOSS),
            quiet("bbox_loss_coefficient", "giou_loss_coefficient", why=LOSS),
            quiet("mask_loss_coefficient", "dice_loss_coefficient", why="the loss of masks, which this page has not"),
            quiet("init_xavier_std", why="first weights of the head of masks, which this page has not"),
            quiet("scale_embedding", "classifier_dropout", "max_position_embeddings", why="no published code reads it"),
            quiet("is_encoder_decoder", why="implied by the class"),
        ),
    ),
)
