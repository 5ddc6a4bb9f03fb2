"""wav2vec 2.0 (Baevski et al., 2020; arXiv:2006.11477). An encoder of speech that learns from sound alone, then reads.

Differs from BERT by: samples of sound instead of tokens, 50 frames a second by convolutions; a convolution tells the
positions; hidden frames are found among others (pre-training), or each frame says a letter or none (CTC).

```
samples ── conv, norm over time, GELU ── conv, GELU x 6 ── LayerNorm ──┬── linear ── (hidden: a learned vector) ──┐
                                                  quantiser ───────────┘                                         │
┌────────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
├── + conv over 128 frames, GELU ── LayerNorm ──┬─ attention ─(+)─ LayerNorm ─┬─ MLP ─(+)─ LayerNorm ── … ── CTC
└─────────────────────────(+)                   └────────────┘                └───────┘
```
The large models (`stable`) have their norms before the branches, and one at the end.
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import key
from anyformer.hub.tables.wav2vec import BESIDE, CODES, CONFIG, HEADS, POSITIONS, QUANTISER, layer_rows
from anyformer.hub.tables.weights import Hub, under
from anyformer.models._speech import Coded, tops, waves
from anyformer.models._tasks import choose
from anyformer.parts import MLP, Attention, Block, ConvPositions, LayerNorm
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class Wav2Vec2(Coded):
    stable: bool = False  # norms before the branches


def wav2vec2(c: Wav2Vec2) -> Recipe:
    norm = LayerNorm.of(eps=c.eps)
    places = ConvPositions.of(
        width=c.position_width,
        groups=c.position_groups,
        act=c.conv_act,
        norm=None if c.stable else norm,
        dropout=c.dropout,
    )
    mixer = Attention.of(heads=c.heads, dropout=c.attention_dropout)
    ffn = MLP.of(hidden=c.hidden, act=c.act, dropout=c.hidden_dropout)
    block = Block.of(mixer=mixer, ffn=ffn, norm=norm, wiring="pre" if c.stable else "post", dropout=c.dropout)
    last, top = norm if c.stable else None, choose("wav2vec2", "task", c.task, tops(c))
    return Encoder.of(c.dim, waves(c), [block] * c.depth, norm=last, heads=top, entry=places)


_tiny = Wav2Vec2(
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
)
_large = Wav2Vec2(dim=1024, depth=24, heads=16, hidden=4096, conv_norm="layer", conv_bias=True, stable=True)
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
        kernels=Wav2Vec2.kernels,
        strides=Wav2Vec2.strides,
        position_width=32,
        position_groups=8,
        class_width=64,
        codes=64,
        code_width=64,
        out_width=64,
        vocab=32,
    ),
    "base": Wav2Vec2(task="none"),
    "base-ctc": Wav2Vec2(),
    "base-pretrain": Wav2Vec2(task="pretrain"),
    "large-lv60": replace(_large, task="none"),
    "large-lv60-ctc": _large,
}
PARAMETERS = {
    "tiny": 19_747,
    "mini": 1_253_776,
    "base": 94_371_712,
    "base-ctc": 94_396_320,
    "base-pretrain": 95_044_608,
    "large-lv60": 315_438_720,
    "large-lv60-ctc": 315_471_520,
}
CASES = {
    "layer": {
        "conv_norm": "layer",
        "conv_bias": True,
        "stable": True,
        "hides": False,
        "position_width": 5,
        "blank": 20,
    },
    "classify": {
        "task": "classify",
        "classes": 3,
        "dim": 30,
        "heads": 3,
        "kernels": (4, 3),
        "strides": (3, 1),
        "widths": (8, 10),
    },
    "pretrain": {"task": "pretrain", "groups": 3, "conv_norm": "layer", "diversity": 0.3},
    "none": {"task": "none", "stable": True, "blank": 3},
}


HUBS = (
    Hub(
        "wav2vec2",
        architectures={
            "Wav2Vec2ForCTC": {"task": "ctc"},
            "Wav2Vec2ForSequenceClassification": {"task": "classify"},
            "Wav2Vec2ForPreTraining": {"task": "pretrain"},
            "Wav2Vec2Model": {"task": "none"},
        },
        base="wav2vec2.",
        processor="Wav2Vec2FeatureExtractor",
        bare=("Wav2Vec2Model",),
        inputs={"hidden_frames": "mask_time_indices"},
        outputs={"projected_states": "heads.context", "projected_quantized_states": "heads.target"},
        weights=lambda c: [layer_rows("wav2vec2", c.stable, *under("conv", "entry", *POSITIONS)), HEADS, QUANTISER],
        config=(*CONFIG, *BESIDE, *CODES, key("do_stable_layer_norm", "stable", default=False)),
    ),
)
