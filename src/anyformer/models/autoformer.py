"""Autoformer (Wu et al., 2021; arXiv:2106.13008). A forecaster that takes series apart: trend and season.

Differs from Informer by: delays of the whole series in place of attention; every sum is followed by taking its trend
off; the trends of the decoder are added up beside its stream; all steps ahead at once, behind a start of the context.

```
past ── rows ── W ── + place ── norm ──┬─ delays ─(+)─ norm ── - trend ──┬─ MLP ─(+)── - trend ── norm ── … ── memory
                                       └──────────┘                      └───────┘                              │
season of the start │ 0 ── W ── + place ── norm ──┬─ delays ─(+)── - trend ── norm ──┬─ delays ─(+)── … ── W ──(+)── law
                                                  └──────────┘    │                  └──────────┘  │            │
trend of the start │ mean ────────────────────────────────────────(+)── conv ──────────────────────(+)── … ─────┘
```
Rows are those of Informer. In transformers the delays of a row depend on the others of its batch; here they are
its own.
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bart import layers
from anyformer.hub.tables.config import key, quiet
from anyformer.hub.tables.series import LAGS, law_rows, row_size, series_config, series_rows
from anyformer.hub.tables.weights import Hub, flat, row, under
from anyformer.models._series import MONTHS, window
from anyformer.parts import MLP, AutoCorrelation, LayerNorm
from anyformer.parts.series.decomposition import SeasonBlock, TrendBlock, WithTrend
from anyformer.parts.series.laws import LAWS, Forecast
from anyformer.parts.series.window import Inward, Stored
from anyformer.skeletons.forecaster import Forecaster
from anyformer.skeletons.series_stacks import TrendStack
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class Autoformer:
    dim: int = 64
    depth: int = 2
    decoder_depth: int = 2
    hidden: int = 32
    horizon: int = 24  # steps ahead
    context: int = 24  # steps of the past, beside those that the lags reach
    start: int = 10  # steps of the context before the horizon
    targets: int = 1  # of a step
    lags: tuple[int, ...] = LAGS
    scaler: str = "mean"  # of absolute values; std, none
    calendar: int = 0  # features of the time of a step
    known: int = 0  # other features that are known ahead
    numbers: int = 0  # static numbers of a series
    categories: tuple[int, ...] = ()  # sizes of its static categories
    widths: tuple[int, ...] = ()  # of their vectors
    law: str = "student_t"  # normal, negative_binomial
    average: int = 25  # steps of a trend's mean
    factor: int = 3  # of the delays
    act: str = "gelu"
    dropout: float = 0.1
    hidden_dropout: float = 0.1

    @property
    def row(self) -> int:
        return row_size(self.targets, self.lags, self.widths, self.calendar + self.known + self.numbers)


def autoformer(c: Autoformer) -> Recipe:
    places = Stored.of(context=c.context + c.horizon)
    norm = LayerNorm.of()
    entry = Inward.of(features=c.row, positions=places, norm=norm, dropout=c.dropout)
    mixer = AutoCorrelation.of(factor=c.factor)
    ffn = MLP.of(hidden=c.hidden, act=c.act, dropout=c.hidden_dropout)
    block = SeasonBlock.of(mixer=mixer, ffn=ffn, norm=norm, average=c.average, dropout=c.dropout)
    both = TrendBlock.of(
        mixer=mixer,
        cross=mixer.but(cross=True),
        ffn=ffn,
        norm=norm,
        features=c.row,
        average=c.average,
        dropout=c.dropout,
    )
    encoder = Stack.of([block] * c.depth, entry=entry)
    decoder = TrendStack.of([both] * c.decoder_depth, entry=entry, average=c.average)
    head = WithTrend.of(features=c.row, then=Forecast.of(law=c.law, size=c.targets))
    return Forecaster.of(c.dim, window(c), encoder, decoder, head, causal=False)


SIZES = {
    "tiny": Autoformer(
        dim=32,
        hidden=24,
        horizon=5,
        context=12,
        start=4,
        lags=(1, 3),
        calendar=2,
        average=5,
        factor=2,
        dropout=0.0,
        hidden_dropout=0.0,
    ),
    "mini": Autoformer(dim=64, hidden=128, horizon=48, context=96, start=48, scaler="std"),
    "base": Autoformer(),
    "monthly": Autoformer(depth=4, decoder_depth=4, lags=MONTHS, calendar=2, numbers=1, categories=(366,), widths=(3,)),
}
PARAMETERS = {
    "tiny": 34_235,
    "mini": 172_903,
    "base": 123_367,
    "monthly": 260_269,
}  # without the places, constants that files store
CASES = {
    "wide": {"targets": 2, "scaler": "std", "calendar": 0, "law": "normal", "depth": 1, "start": 8, "horizon": 6},
    "static": {
        "categories": (5, 3),
        "widths": (2, 4),
        "numbers": 2,
        "known": 1,
        "law": "negative_binomial",
        "decoder_depth": 1,
        "factor": 3,
        "average": 3,
    },
    "plain": {
        "scaler": "none",
        "targets": 3,
        "calendar": 0,
        "lags": (2,),
        "context": 9,
        "horizon": 4,
        "start": 1,
        "factor": 3,
    },
}


def _weights(c: Autoformer) -> list:
    side = layers()
    norm = row("final_layer_norm.layernorm", "norm.ffn.norm")
    plain = {name: [r for r in flat(rows) if r.ours != ("norm.ffn",)] for name, rows in side.items()}
    return [
        *series_rows(),
        under("model.encoder.layers.{i}", "encoder.blocks.{i}", *plain["encoder"], norm),
        under(
            "model.decoder.layers.{i}",
            "decoder.blocks.{i}",
            *plain["decoder"],
            norm,
            row("trend_projection", "trend"),
        ),
        row("model.decoder.seasonality_projection", "heads.forecast.proj"),
        *law_rows(LAWS[c.law].names, "heads.forecast.then"),
    ]


HUBS = (
    Hub(
        "autoformer",
        architectures={"AutoformerForPrediction": {}},
        weights=_weights,
        outputs={"params": "heads.forecast", "loc": "beside.shift", "scale": "beside.scale"},
        config=(
            *series_config(),
            key("label_length", "start", default=10),
            key("moving_average", "average", default=25),
            key("autocorrelation_factor", "factor", default=3),
            key("dropout", "dropout", default=0.1),
            quiet(
                "encoder_attention_heads",
                "decoder_attention_heads",
                why="delays are those of the mean over all channels, however they are cut into heads",
            ),
            quiet("attention_dropout", why="no layer of this file reads it"),
        ),
    ),
)
