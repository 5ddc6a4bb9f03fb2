"""Former names of options: read in files and on the command line (`core.options.current`), refused in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "final_lr": "min_lr_ratio",
    "clip": "grad_clip",
    "rates": "lr_multipliers",
    "changes": "overrides",
    "rows": "order",
    "recompute": "activation_checkpointing",
    "learn": "trainable",
    "exchange": "communication",
}
VALUES = {"order": {"drawn": "random"}}  # former values of an option


def refuse(options: Mapping[str, Any]) -> None:
    """Raises TypeError for a former name, with the present one."""
    for name in RENAMED.keys() & options.keys():
        raise TypeError(f"the option {name!r} is now called {RENAMED[name]!r}")
