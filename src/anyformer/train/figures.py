"""What a model's parts report of a training step, as numbers for the log: auxiliary losses, use of experts."""

from __future__ import annotations

from torch import Tensor

from anyformer.skeletons.base import Output


def figures(output: Output) -> dict[str, Tensor]:
    """`aux_NAME` for each auxiliary loss; `NAME_least` and `NAME_greatest`, over all layers, for what parts report
    (`Flow.report`). Tensors without dimensions, not yet fetched from the device; empty for a model that reports
    nothing."""
    found = {f"aux_{name}": value.detach() for name, value in output.aux.items()}
    for name, values in output.figures.items():
        found[f"{name}_least"] = min(v.min() for v in values)
        found[f"{name}_greatest"] = max(v.max() for v in values)
    return found
