"""The common names of tensors and settings in files of forecasters, for the pages of Informer and Autoformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyformer.hub.tables.config import ACTS, Lens, Same, alike, key, keys, must, quiet
from anyformer.hub.tables.weights import row, under

LAGS = (1, 2, 3, 4, 5, 6, 7)
SCALINGS = {"mean": "mean", "std": "std", True: "mean", False: "none", None: "none"}
LAW_NAMES = ("student_t", "normal", "negative_binomial")


def series_rows() -> list[Any]:
    """Rows of the entries, the static categories and the parameters of the law."""
    entry = [
        row("value_embedding.value_projection", "entry.proj"),
        row("embed_positions.weight", "entry.positions.weight"),
        row("layernorm_embedding", "entry.norm"),
    ]
    return [
        row("model.embedder.embedders.{i}", "embed.categories.{i}"),
        *(under(f"model.{side}", side, *entry) for side in ("encoder", "decoder")),
    ]


def law_rows(names: tuple[str, ...], head: str = "heads.forecast") -> list[Any]:
    """Rows of the parameters of a law."""
    return [row(f"parameter_projection.proj.{i}", f"{head}.proj.{name}") for i, name in enumerate(names)]


def _lags(config: Mapping[str, Any]) -> dict[str, Any]:
    lags = config.get("lags_sequence")
    return {"lags": LAGS if lags is None else tuple(lags)}


def _scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    value = config.get("scaling", "mean")
    if not isinstance(value, str | bool | None) or value not in SCALINGS:
        raise ValueError(f"config key 'scaling' is {value!r}; expected 'mean', 'std', true, false or null")
    return {"scaler": SCALINGS[value]}


def _write_scaling(hyper: Any) -> dict[str, Any]:
    return {"scaling": False if hyper.scaler == "none" else hyper.scaler}


def _categories(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without categories, files have a list with one 0 in place of none."""
    count = config.get("num_static_categorical_features") or 0
    sizes, widths = (tuple(config.get(name) or ()) for name in ("cardinality", "embedding_dimension"))
    if not count:
        return {"categories": (), "widths": ()}
    widths = widths or tuple(min(50, (size + 1) // 2) for size in sizes)
    if len(sizes) != count or len(widths) != count:
        raise ValueError(
            f"config keys 'cardinality' and 'embedding_dimension' are {list(sizes)} and {list(widths)}; expected "
            f"{count} numbers each, by 'num_static_categorical_features'"
        )
    return {"categories": sizes, "widths": widths}


def _write_categories(hyper: Any) -> dict[str, Any]:
    return {
        "num_static_categorical_features": len(hyper.categories),
        "cardinality": list(hyper.categories) or [0],
        "embedding_dimension": list(hyper.widths) or [0],
    }


def row_size(targets: int, lags: tuple[int, ...], widths: tuple[int, ...], known: int) -> int:
    """F, the numbers of a row: lags, the vectors of categories, `known` features, shift and scale of each target."""
    return targets * len(lags) + sum(widths) + known + 2 * targets


def _check_row(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("num_dynamic_real_features", "num_time_features", "num_static_real_features")
    known, lags = sum(config.get(name) or 0 for name in names), tuple(config.get("lags_sequence") or LAGS)
    wanted = row_size(config.get("input_size", 1), lags, _categories(config)["widths"], known)
    if config.get("feature_size") not in (None, wanted):
        raise ValueError(
            f"config key 'feature_size' is {config['feature_size']}; by the lags and features it is {wanted}"
        )
    return {}


def _write_row(hyper: Any) -> dict[str, Any]:
    return {"feature_size": hyper.row}


DERIVED = "follows from the lags and features, and agrees with them"
LEFT_OUT = "layers that its training left out at random; `fit` leaves out none"
DROPPED = ("encoder_layerdrop", "decoder_layerdrop")  # written as 0: an absent key means 0.1


def series_config() -> tuple[Lens, ...]:
    """Entries for the hyperparameters that both pages have."""
    return (
        *keys(d_model="dim", decoder_layers="decoder_depth", prediction_length="horizon"),
        key("encoder_layers", "depth", also=("num_hidden_layers",)),
        alike("hidden", "encoder_ffn_dim", "decoder_ffn_dim"),
        key("context_length", "context", default=Same("horizon")),
        key("input_size", "targets", default=1),
        Lens(("lags_sequence",), ("lags",), _lags, lambda hyper: {"lags_sequence": list(hyper.lags)}),
        Lens(("scaling",), ("scaler",), _scaling, _write_scaling),
        key("num_time_features", "calendar", default=0),
        key("num_dynamic_real_features", "known", default=0),
        key("num_static_real_features", "numbers", default=0),
        Lens(
            ("num_static_categorical_features", "cardinality", "embedding_dimension"),
            ("categories", "widths"),
            _categories,
            _write_categories,
        ),
        Lens(("feature_size",), (), _check_row, _write_row, DERIVED),
        key("distribution_output", "law", dict(zip(LAW_NAMES, LAW_NAMES, strict=True)), default="student_t"),
        must("loss", "nll"),
        key("activation_function", "act", ACTS, default="gelu"),
        key("activation_dropout", "hidden_dropout", default=0.1),
        Lens(DROPPED, (), lambda config: {}, lambda hyper: dict.fromkeys(DROPPED, 0.0), LEFT_OUT),
        quiet("num_parallel_samples", why="the draws of its forecasts; an option of `forecast` here"),
        must("is_encoder_decoder", True),
    )
