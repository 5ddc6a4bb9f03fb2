"""Conformer (Gulati et al., 2020; arXiv:2005.08100), in wav2vec 2.0 (Wang et al., 2022; arXiv:2010.05171, fairseq S2T).

Differs from wav2vec 2.0 by: a block has a convolution over 31 frames after its attention, and half a feed-forward step
at both ends; positions are distances (or turns) in the attention, and no convolution tells them. (Files hold that
convolution all the same.)

```
samples ── wav2vec 2.0's convolutions, linear ── blocks x depth ── LayerNorm ── CTC | classes | codes of hidden frames

a block:  ──┬─ MLP / 2 ─(+)─┬─ attention ─(+)─┬─ convolution ─(+)─┬─ MLP / 2 ─(+)─ norm ──>
            └────────────┘  └──────────────┘  └────────────────┘  └────────────┘
```
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import Lens, key, quiet
from anyformer.hub.tables.wav2vec import BESIDE, CODES, CONFIG, FRONT, HEADS, POSITIONS, QUANTISER
from anyformer.hub.tables.wav2vec import MLP as FFN
from anyformer.hub.tables.weights import Columns, Hub, Thin, row, under
from anyformer.models._speech import Coded, tops, waves
from anyformer.models._tasks import choose
from anyformer.parts import MLP, Attention, LayerNorm, Relative
from anyformer.parts.norms import TimeBatchNorm
from anyformer.parts.proteins import StoredRotary
from anyformer.parts.sound.conformer import ConformerEntry, ConvModule, Macaron, TurnedInput
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class Conformer(Coded):
    positions: str = "relative"  # relative, rotary, none
    theta: int = 10000
    kernel: int = 31  # frames of a block's convolution
    conv_dropout: float = 0.0


def conformer(c: Conformer) -> Recipe:
    norm, turned = LayerNorm.of(), c.positions == "rotary"
    kinds = {
        "relative": Attention.of(heads=c.heads, scores=[Relative.of()], dropout=c.attention_dropout),
        "rotary": TurnedInput.of(turn=StoredRotary.of(), heads=c.heads, dropout=c.attention_dropout),
        "none": Attention.of(heads=c.heads, dropout=c.attention_dropout),
    }
    block = Macaron.of(
        mixer=choose("conformer", "positions", c.positions, kinds),
        conv=ConvModule.of(norm=norm, middle=TimeBatchNorm.of(), width=c.kernel, act=c.act, dropout=c.conv_dropout),
        ffn=MLP.of(hidden=c.hidden, act=c.act, dropout=c.hidden_dropout),
        norm=norm,
        dropout=c.dropout,
        mixer_dropout=c.attention_dropout,
    )
    theta = c.theta if turned else None
    entry = ConformerEntry.of(c.position_width, c.position_groups, c.dim // c.heads, theta, c.dropout)
    top = choose("conformer", "task", c.task, tops(c))
    return Encoder.of(c.dim, waves(c), [block] * c.depth, norm=LayerNorm.of(eps=c.eps), heads=top, entry=entry)


_tiny = Conformer(
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
    codes=7,
    code_width=12,
    out_width=10,
    kernel=5,
)
_large = Conformer(dim=1024, depth=24, heads=16, hidden=4096, act="silu", conv_norm="layer", conv_bias=True)
SIZES = {
    "tiny": _tiny,
    "mini": replace(
        _tiny,
        dim=144,
        depth=4,
        heads=4,
        hidden=288,
        eps=1e-5,
        widths=(96,) * 7,
        kernels=Conformer.kernels,
        strides=Conformer.strides,
        position_width=1,
        position_groups=144,
        class_width=64,
        codes=64,
        code_width=64,
        out_width=64,
        vocab=32,
        kernel=15,
        act="silu",
    ),
    "rel-pos-large": replace(_large, task="none"),
    "rope-large": replace(_large, task="none", positions="rotary"),
    "rel-pos-large-ctc": _large,
}
PARAMETERS = {  # without the convolution of positions, which files hold and nothing reads
    "tiny": 32_093,
    "mini": 1_517_408,
    "rel-pos-large": 610_169_344,
    "rope-large": 584_954_368,
    "rel-pos-large-ctc": 610_202_144,
}
CASES = {
    "rotary": {"positions": "rotary", "conv_norm": "layer", "theta": 50, "kernel": 3, "act": "silu"},
    "plain": {"positions": "none", "task": "classify", "hides": False, "dim": 30, "heads": 3},
    "pretrain": {"task": "pretrain", "conv_norm": "layer", "kernel": 1, "diversity": 0.3},
    "none": {"task": "none", "position_width": 5, "blank": 2},
}


def first_weights(c: Conformer) -> dict[str, float]:
    size = (2 / (c.heads + c.dim // c.heads)) ** 0.5
    ends = dict.fromkeys(("**.mixer.o", "**.start.down", "**.ffn.down"), 0.02)  # not smaller in deep stacks
    return {**ends, "**.scores.*.u": size, "**.scores.*.v": size}


KINDS = {"relative": "relative", "rotary": "rotary", None: "none"}


def _positions(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config.get("position_embeddings_type", "relative")
    if kind not in KINDS:
        raise ValueError(f"config key 'position_embeddings_type' is {kind!r}; expected relative, rotary or null")
    return {"positions": KINDS[kind]}


def _put_positions(c: Conformer) -> dict[str, Any]:
    return {"position_embeddings_type": None if c.positions == "none" else c.positions}


def _weights(c: Conformer) -> list:
    layer = under(
        "encoder.layers.{i}",
        "blocks.{i}",
        under("ffn1", "start", *FFN),
        under("ffn2", "ffn", *FFN),
        row("ffn1_layer_norm", "norm.start"),
        row("self_attn_layer_norm", "norm.mixer"),
        row("ffn2_layer_norm", "norm.ffn"),
        row("final_layer_norm", "norm.out"),
        under(
            "self_attn",
            "mixer",
            *(row(f"linear_{theirs}", ours) for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))),
            row("linear_pos", "scores.0.r", Columns()),
            row("pos_bias_u", "scores.0.u"),
            row("pos_bias_v", "scores.0.v"),
        ),
        under(
            "conv_module",
            "conv",
            row("layer_norm", "norm"),
            row("pointwise_conv1", "into", Thin(2)),
            row("depthwise_conv", "conv"),
            row("batch_norm", "middle"),
            row("pointwise_conv2", "out", Thin(2)),
        ),
    )
    inner = under(
        "wav2vec2_conformer",
        "",
        *FRONT,
        under("encoder.pos_conv_embed.conv", "entry", *POSITIONS),
        row("encoder.embed_positions.inv_freq", "entry.frequencies"),
        row("encoder.layer_norm", "norm"),
        layer,
    )
    return [inner, HEADS, QUANTISER]


HUBS = (
    Hub(
        "wav2vec2-conformer",
        architectures={
            "Wav2Vec2ConformerForCTC": {"task": "ctc"},
            "Wav2Vec2ConformerForSequenceClassification": {"task": "classify"},
            "Wav2Vec2ConformerForPreTraining": {"task": "pretrain"},
            "Wav2Vec2ConformerModel": {"task": "none"},
        },
        base="wav2vec2_conformer.",
        processor="Wav2Vec2FeatureExtractor",
        bare=("Wav2Vec2ConformerModel",),
        inputs={"hidden_frames": "mask_time_indices"},
        outputs={"projected_states": "heads.context", "projected_quantized_states": "heads.target"},
        weights=_weights,
        config=(
            *CONFIG,
            *BESIDE,
            *CODES,
            Lens(("position_embeddings_type",), ("positions",), _positions, _put_positions),
            key("rotary_embedding_base", "theta", default=10000),
            key("conv_depthwise_kernel_size", "kernel", default=31),
            key("conformer_conv_dropout", "conv_dropout", default=0.1),
            quiet("do_stable_layer_norm", why="its blocks have one order of norms"),
            quiet("max_source_positions", why="the table of distances grows with the sound"),
        ),
    ),
)
