"""Faults in long texts, first weights, dropout, losses, half precision, and parts in their roles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from anyformer.core.init import initialise
from anyformer.parts import Attention, LayerNorm
from anyformer.parts.attention.cache import KeysValues
from tests.contract.faults_in_models import padding_is_seen
from tests.contract.planting import around, fault, module

# ------------------------------------------------------------------------------------------- long texts


@fault("parity of long texts", on="gpt/tiny", says="257 tokens: .*: differs")
def many_keys_are_too_many(patch: pytest.MonkeyPatch) -> None:
    def sdpa(plain: Any, q: Any, k: Any, *rest: Any, **options: Any) -> Any:
        return plain(q, k, *rest, **options) * (1.01 if k.shape[2] > 100 else 1.0)

    around(patch, module("anyformer.parts.attention.kernels"), "_sdpa", sdpa)


@fault("caching changes nothing in long texts", on="gpt/tiny", says="tokens .* of 1100, row .: differs")
def late_keys_are_off(patch: pytest.MonkeyPatch) -> None:
    late = lambda plain, self, k, v: plain(self, k * (1.01 if self.length > 40 else 1.0), v)  # noqa: E731
    around(patch, KeysValues, "append", late)


@fault("initial weights match the oracle", on="gpt/tiny", says=r"wte.weight: std 0\.(1|09)")
def first_weights_are_too_wide(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vars(initialise)["__wrapped__"], "__defaults__", (0.1, None, "depth", None))


# ---------------------------------------------------------------------------- dropout, losses, half precision


def dropping(patch: pytest.MonkeyPatch, drop: Callable[..., Any]) -> None:
    """Dropout at the ends of branches by this function."""
    patch.setattr(module("anyformer.parts.block"), "drop", drop)


@fault("dropout is where the oracle has it", on="gpt/tiny", says="with dropout: .*: differs")
@fault("dropout drops elements at its rate", on="gpt/tiny", says=r"Block.dropout=0.3: dropped at the rate \[0.15\]")
def half_the_rate(patch: pytest.MonkeyPatch) -> None:
    dropping(patch, lambda part, x: F.dropout(x, part.dropout / 2, part.training))


@fault("dropout is off in evaluation", on="gpt/tiny", says="dropout in evaluation: hidden: differs")
def dropout_stays_on(patch: pytest.MonkeyPatch) -> None:
    dropping(patch, lambda part, x: F.dropout(x, part.dropout))


@fault("dropout drops elements at its rate", on="gpt/tiny", says="Block.dropout=0.3: rows share one mask")
def one_mask_for_all_rows(patch: pytest.MonkeyPatch) -> None:
    dropping(patch, lambda part, x: x * F.dropout(torch.ones_like(x[:1]), part.dropout, part.training))


@fault("fused attention drops weights at its rate", on="", says="sdpa: weights are dropped at another rate")
def fused_attention_drops_half(patch: pytest.MonkeyPatch) -> None:
    def sdpa(plain: Any, q: Any, k: Any, v: Any, mask: Any, bias: Any, scale: Any, dropout: Any, causal: Any) -> Any:
        return plain(q, k, v, mask, bias, scale, dropout / 2, causal)

    around(patch, module("anyformer.parts.attention.kernels"), "_sdpa", sdpa)


@fault("loss matches the oracle", on="gpt/tiny", says="loss: differs")
def labels_are_late(patch: pytest.MonkeyPatch) -> None:
    late = lambda plain, out, labels, count: plain(out, labels.roll(1, 1), count)  # noqa: E731
    around(patch, module("anyformer.train.objectives"), "causal_lm", late)


@fault("norms in half precision match float32", on="gpt/tiny", says="norm.*: off by .* roundings")
def coarse_norm(patch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Any) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        squares = centred.square().cumsum(-1)[..., -1:] / x.shape[-1]  # a sum in the type of x
        return centred * (squares + self.eps).rsqrt() * self.weight + self.bias

    patch.setattr(LayerNorm, "forward", forward)


@fault("half precision stays close to float32", on="gpt/tiny", says="hidden: off by")
def coarse_attention(patch: pytest.MonkeyPatch) -> None:
    def sdpa(plain: Any, *args: Any, **options: Any) -> Any:
        y = plain(*args, **options)
        return (y * 8).round() / 8 if y.dtype == torch.bfloat16 else y

    around(patch, module("anyformer.parts.attention.kernels"), "_sdpa", sdpa)


@fault("stored dtype is that of most weights", on="gpt/tiny", says=r"the config names \{'float32'\}")
def the_first_tensor_decides(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module("anyformer.hub.save"), "stored_type", lambda tensors: next(iter(tensors.values())).dtype)


# ------------------------------------------------------------------------------------------------ roles


@fault("batching changes nothing in any role", on="Attention in an encoder", says="row .: differs")
def padding_is_seen_everywhere(patch: pytest.MonkeyPatch) -> None:
    padding_is_seen(patch)


@fault("caching changes nothing in any role", on="Attention in a decoder", says="it continues differently with a cache")
def kept_keys_are_others(patch: pytest.MonkeyPatch) -> None:
    late = lambda plain, self, k, v: plain(self, k * (-2.0 if self.length else 1.0), v)  # noqa: E731
    around(patch, KeysValues, "append", late)


@fault(
    "every option has an effect in its role or is refused",
    on="Attention in the place of cross-attention",
    says="'mask'",
)
def a_mask_is_dropped(patch: pytest.MonkeyPatch) -> None:
    def init(plain: Any, self: Any, *args: Any, **options: Any) -> None:
        plain(self, *args, **options | ({"mask": None} if options.get("cross") else {}))

    around(patch, Attention, "__init__", init)
