"""The loss of a step: model and objective as one module, auxiliary losses, and the metrics that parts report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.data.batches import Batch
from anyformer.parts import unscored
from anyformer.parts.heads import Logits
from anyformer.skeletons.base import Output
from anyformer.train import precision as half
from anyformer.train.objectives import Objective, in_pieces
from anyformer.train.settings import CommonSettings


class Loss(nn.Module):
    """A model and its objective, wrapped as one module so that DDP sees exactly the parameters that the loss uses.

    Attributes:
        run: how the model is called; `compiles`: it will be compiled. `metrics`: those that its parts and the objective
            reported for the last batch.

    Raises:
        ValueError: for chunked_loss="on", if the loss cannot be made in pieces.
    """

    def __init__(self, model: Any, objective: Objective, settings: CommonSettings, whole: bool = True):
        super().__init__()
        self.model, self.objective = model, objective
        self.precision, self.compiles = settings.precision, settings.compile
        self.pieces = pieces_from(model, objective, settings, whole)
        self.run: Callable[..., Output] = lambda **inputs: model(**inputs)
        self.metrics: dict[str, Any] = {}

    def forward(self, inputs: Batch, labels: Tensor, count: Any, share: float) -> Tensor:
        """This batch's part of the loss: `count` labels count in the step, a `share` of its real tokens are here."""
        with half.cast(labels.device, self.precision), unscored.in_pieces(self.pieces):
            output = self.run(**inputs)
            loss = self.objective(output, labels, count)
            self.metrics = metrics(output) | getattr(self.objective, "metrics", {})
            return with_auxiliary(loss, output, share)


def pieces_from(model: nn.Module, objective: Objective, settings: CommonSettings, whole: bool) -> int | None:
    """The bytes of logits from which the loss is made in pieces; None: never.

    Args:
        whole: this process holds each weight whole.

    Raises:
        ValueError: for chunked_loss="on", if something stands against it.
    """
    against = {
        "the objective reads logits, which then are never whole": not in_pieces(objective),
        "processes hold parts of the head": not whole,
        "the model has no head that is one matrix": not any(
            isinstance(m, Logits) and m.plain and (m.proj is None or type(m.proj) is nn.Linear) for m in model.modules()
        ),
    }
    if settings.chunked_loss == "on":
        if reasons := [why for why, stands in against.items() if stands]:
            raise ValueError(f"chunked_loss='on' is not for this run: {'; '.join(reasons)}. Use auto or off")
        return 0
    never = settings.chunked_loss == "off" or settings.compile or settings.statistics_every
    return None if never or any(against.values()) else unscored.LEAST


def metrics(output: Output) -> dict[str, Tensor]:
    """`aux_NAME` for each auxiliary loss; `NAME_least` and `NAME_greatest`, over all layers, for metrics of parts
    (`Flow.report`). Tensors without dimensions, not yet fetched from the device; empty for a model that reports
    nothing."""
    by_name = {f"aux_{name}": value.detach() for name, value in output.aux.items()}
    for name, values in output.figures.items():
        by_name[f"{name}_least"] = min(v.min() for v in values)
        by_name[f"{name}_greatest"] = max(v.max() for v in values)
    return by_name


def with_auxiliary(loss: Tensor, output: Output, share: float) -> Tensor:
    """The loss plus the auxiliary losses of parts (`Flow.add_aux`).

    An auxiliary loss is a mean over the real tokens of one batch; `share` is the share of the step's in that batch.
    """
    return loss + share * torch.stack(list(output.aux.values())).sum() if output.aux else loss


def real_tokens(batch: dict[str, Tensor]) -> int:
    """The number of tokens in a batch (for images of pixels, for series of values) without padding: auxiliary losses
    are means over them."""
    for name, at_least in (("decoder_attention_mask", 1), ("attention_mask", 1), ("document_ids", 0)):
        if name in batch:
            return int((batch[name] >= at_least).sum())
    names = (
        "decoder_input_ids", "input_ids", "pixel_values", "input_values", "input_features", "past_values", "nodes"
    )  # fmt: skip
    return next(batch[n] for n in names if n in batch).numel()
