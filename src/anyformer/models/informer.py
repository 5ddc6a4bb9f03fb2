"""Informer (Zhou et al., 2020; arXiv:2012.07436). A forecaster of time series: the law of each step ahead.

Differs from the 2017 Transformer by: rows of numbers, one a step, instead of tokens; only the queries that prefer some
keys attend; between two blocks of the encoder the steps are halved; a distribution for each step.

```
past ── rows ── W ── + place ── norm ──┬─ few queries ─(+)─ norm ─┬─ MLP ─(+)─ norm ── halved ── … ── memory
                                       └───────────────┘          └───────┘                              │
ahead ── rows ── W ── + place ── norm ──┬─ few, causal ─(+)─ norm ─┬─ cross ─(+)─ norm ─┬─ MLP ─(+)─ norm ── … ── law
                                        └───────────────┘          └─────────┘          └───────┘
```
A row holds earlier values of the series in the scale of its window, and features of the step. In the paper the decoder
sees all steps at once, behind a start of the context (`start`); in published files one after another, each with its
values before it (`start` None). The network is the same.
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bart import layers
from anyformer.hub.tables.config import alike, key
from anyformer.hub.tables.series import LAGS, law_rows, row_size, series_config, series_rows
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._series import MONTHS, window
from anyformer.models._tasks import choose
from anyformer.parts import MLP, Attention, Block, LayerNorm, ProbSparse
from anyformer.parts.series.distil import Distil
from anyformer.parts.series.laws import LAWS, Forecast
from anyformer.parts.series.window import Inward, Stored
from anyformer.skeletons.forecaster import Forecaster
from anyformer.skeletons.series_stacks import DistilledStack
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class Informer:
    dim: int = 64
    depth: int = 2
    decoder_depth: int = 2
    heads: int = 2
    hidden: int = 32
    horizon: int = 24  # steps ahead
    context: int = 24  # steps of the past, beside those that the lags reach
    targets: int = 1  # of a step
    lags: tuple[int, ...] = LAGS
    scaler: str = "mean"  # of absolute values; std, none
    calendar: int = 0  # features of the time of a step
    known: int = 0  # other features that are known ahead
    numbers: int = 0  # static numbers of a series
    categories: tuple[int, ...] = ()  # sizes of its static categories
    widths: tuple[int, ...] = ()  # of their vectors
    law: str = "student_t"  # normal, negative_binomial
    attention: str = "prob"  # or full
    factor: int = 5  # of the queries that attend
    distil: bool = True  # halve the steps between blocks
    start: int | None = None  # steps of the context before the horizon; None: one step after another
    act: str = "gelu"
    dropout: float = 0.05
    attention_dropout: float = 0.1
    hidden_dropout: float = 0.1

    @property
    def row(self) -> int:
        return row_size(self.targets, self.lags, self.widths, self.calendar + self.known + self.numbers)


def informer(c: Informer) -> Recipe:
    places, norm = Stored.of(context=c.context + c.horizon), LayerNorm.of()
    entry = Inward.of(features=c.row, positions=places, norm=norm, dropout=c.dropout)
    full = Attention.of(heads=c.heads, dropout=c.attention_dropout)
    few = ProbSparse.of(heads=c.heads, factor=c.factor, draws="many", dropout=c.attention_dropout)
    ffn = MLP.of(hidden=c.hidden, act=c.act, dropout=c.hidden_dropout)
    mixer = choose("informer", "attention", c.attention, {"prob": few, "full": full})
    block = Block.of(mixer=mixer, ffn=ffn, norm=norm, wiring="post", dropout=c.dropout)
    both = block.but(cross=full.but(cross=True))
    between = Distil.of() if c.distil else None
    encoder = DistilledStack.of([block] * c.depth, entry=entry, between=between)
    decoder = Stack.of([both] * c.decoder_depth, entry=entry)
    return Forecaster.of(c.dim, window(c), encoder, decoder, Forecast.of(law=c.law, size=c.targets))


SIZES = {
    "tiny": Informer(
        dim=32,
        depth=3,
        heads=4,
        hidden=24,
        horizon=5,
        context=12,
        lags=(1, 3),
        calendar=2,
        factor=3,
        dropout=0.0,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    ),
    "mini": Informer(dim=64, heads=4, hidden=128, horizon=48, context=96, scaler="std"),
    "base": Informer(),
    "monthly": Informer(depth=4, decoder_depth=4, lags=MONTHS, calendar=2, numbers=1, categories=(366,), widths=(3,)),
}
PARAMETERS = {
    "tiny": 45_243,
    "mini": 181_507,
    "base": 131_971,
    "monthly": 277_837,
}  # without the places, constants that files store
CASES = {
    "full": {"attention": "full", "distil": False, "targets": 2, "scaler": "std", "calendar": 0, "law": "normal"},
    "static": {
        "categories": (5, 3),
        "widths": (2, 4),
        "numbers": 2,
        "known": 1,
        "law": "negative_binomial",
        "decoder_depth": 1,
        "depth": 2,
    },
    "few": {"factor": 1, "depth": 1, "decoder_depth": 1, "context": 14, "horizon": 8},
    "plain": {"scaler": "none", "targets": 3, "calendar": 0, "lags": (2,), "context": 7, "horizon": 4, "depth": 2},
}


def _weights(c: Informer) -> list:
    side = layers()
    distil = [row("downConv", "conv"), row("norm", "norm")]
    return [
        *series_rows(),
        under("model.encoder.layers.{i}", "encoder.blocks.{i}", *side["encoder"]),
        under("model.encoder.conv_layers.{i}", "encoder.between.{i}", *distil),
        under("model.decoder.layers.{i}", "decoder.blocks.{i}", *side["decoder"]),
        *law_rows(LAWS[c.law].names),
    ]


HUBS = (
    Hub(
        "informer",
        architectures={"InformerForPrediction": {"start": None}},
        weights=_weights,
        outputs={"params": "heads.forecast", "loc": "beside.shift", "scale": "beside.scale"},
        config=(
            *series_config(),
            alike("heads", "encoder_attention_heads", "decoder_attention_heads"),
            key("attention_type", "attention", {"prob": "prob", "full": "full"}, default="prob"),
            key("sampling_factor", "factor", default=5),
            key("distil", "distil", default=True),
            key("dropout", "dropout", default=0.05),
            key("attention_dropout", "attention_dropout", default=0.1),
        ),
    ),
)
