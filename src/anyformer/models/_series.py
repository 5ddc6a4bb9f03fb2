"""The front-end that the pages of time series share."""

from __future__ import annotations

from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.series import LAGS
from anyformer.parts.series.window import Series

MONTHS = (*LAGS, 11, 12, 13, 23, 24, 25, 35, 36, 37)  # lags of a series with a value a month


def window(c: Any) -> Recipe[Series]:
    """The windows of a series, from the hyperparameters of its page."""
    return Series.of(
        context=c.context,
        horizon=c.horizon,
        size=c.targets,
        lags=c.lags,
        scaling=c.scaler,
        times=c.calendar + c.known,
        numbers=c.numbers,
        categories=c.categories,
        widths=c.widths,
        start=c.start,
    )
