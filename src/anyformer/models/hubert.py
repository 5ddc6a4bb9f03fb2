"""HuBERT (Hsu et al., 2021; arXiv:2106.07447). An encoder of speech that learns to name the clusters of hidden frames.

Differs from wav2vec 2.0 by: clusters of features (of MFCC, later of its own blocks) instead of a quantiser: a hidden
frame's cluster is named, as BERT names a hidden token.

```
samples ── convolutions ── (LayerNorm) ── linear ── (hidden: a learned vector) ──┬── + conv over 128 frames ── …
                                                                                 └───(+)
            … ── LayerNorm ──┬─ attention ─(+)─ LayerNorm ─┬─ MLP ─(+)─ LayerNorm ── … x depth ── CTC | classes | units
                             └─────────────┘               └───────┘
```
Units are scored by the cosine to a vector each. `stable` models have their norms before the branches.
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import key
from anyformer.hub.tables.wav2vec import CONFIG, HEADS, POSITIONS, layer_rows
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._speech import Speech, tops, waves
from anyformer.models._tasks import choose
from anyformer.parts import MLP, Attention, Block, ConvPositions, LayerNorm, Units
from anyformer.parts.sound.positions import NormedPositions
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class Hubert(Speech):
    stable: bool = False  # norms before the branches
    project_norm: bool = True  # a norm between the convolutions and their projection
    batch_norm: bool = False  # of the convolution of positions, in place of its weight norm


def hubert(c: Hubert) -> Recipe:
    norm = LayerNorm.of(eps=c.eps)
    entry = (NormedPositions if c.batch_norm else ConvPositions).of(
        width=c.position_width,
        groups=c.position_groups,
        act=c.conv_act,
        norm=None if c.stable else norm,
        dropout=c.dropout,
    )
    mixer = Attention.of(heads=c.heads, dropout=c.attention_dropout)
    ffn = MLP.of(hidden=c.hidden, act=c.act, dropout=c.hidden_dropout)
    block = Block.of(mixer=mixer, ffn=ffn, norm=norm, wiring="pre" if c.stable else "post", dropout=c.dropout)
    heads = {**tops(c), "units": {"units": Units.of(codes=c.classes, width=c.class_width)}}
    last, top = norm if c.stable else None, choose("hubert", "task", c.task, heads)
    return Encoder.of(c.dim, waves(c, c.project_norm), [block] * c.depth, norm=last, heads=top, entry=entry)


_tiny = Hubert(
    dim=32,
    depth=2,
    heads=4,
    hidden=48,
    eps=1e-3,
    widths=(8, 12, 8),
    kernels=(5, 3, 2),
    strides=(3, 2, 2),
    vocab=21,
    position_width=6,
    position_groups=2,
    class_width=20,
)
_large = Hubert(dim=1024, depth=24, heads=16, hidden=4096, conv_norm="layer", conv_bias=True, stable=True, task="none")
SIZES = {
    "tiny": _tiny,
    "mini": replace(
        _tiny,
        dim=144,
        depth=4,
        heads=4,
        hidden=576,
        eps=1e-5,
        widths=(96,) * 7,
        kernels=Hubert.kernels,
        strides=Hubert.strides,
        position_width=32,
        position_groups=8,
        class_width=64,
        vocab=32,
    ),
    "base": Hubert(task="none"),
    "large": _large,
    "xlarge": replace(_large, dim=1280, depth=48, hidden=5120),
}
PARAMETERS = {
    "tiny": 19_747,
    "mini": 1_253_776,
    "base": 94_371_712,
    "large": 315_438_720,
    "xlarge": 962_497_408,
}
CASES = {
    "batch": {"batch_norm": True, "conv_norm": "layer", "conv_bias": True, "position_width": 5},
    "stable": {"task": "none", "stable": True, "project_norm": False, "hides": False, "blank": 4},
    "classify": {"task": "classify", "classes": 3, "dim": 30, "heads": 3, "batch_norm": True, "stable": True},
}


def first_weights(c: Hubert) -> dict[str, float]:
    sizes = dict.fromkeys(("embed.project", "**.mixer.o", "**.ffn.down"), 0.02)
    return {**sizes, "embed.project.bias": 0.0, "embed.layers.*.conv.bias": 0.0, "entry.conv.bias": 0.0}


PLACES = {  # rows of the convolution of positions, without and with its batch norm
    False: under("conv", "entry", *POSITIONS),
    True: [row("batch_norm", "entry.batch"), row("conv", "entry.conv")],
}
HUBS = (
    Hub(
        "hubert",
        architectures={
            "HubertForCTC": {"task": "ctc"},
            "HubertForSequenceClassification": {"task": "classify"},
            "HubertModel": {"task": "none"},
        },
        base="hubert.",
        bare=("HubertModel",),
        processor="Wav2Vec2FeatureExtractor",
        inputs={"hidden_frames": "mask_time_indices"},
        weights=lambda c: [layer_rows("hubert", c.stable, *PLACES[c.batch_norm]), HEADS],
        config=(
            *CONFIG,
            key("do_stable_layer_norm", "stable", default=False),
            key("feat_proj_layer_norm", "project_norm", default=True),
            key("conv_pos_batch_norm", "batch_norm", default=False),
        ),
    ),
)
