"""Self-attention of a decoder as one node, whose keys and values are written into bound buffers.

B batch, T queries, S keys, H heads, G key/value heads, K head width, R room of the buffers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from anyformer.core.flow import Companion, Flow
from anyformer.core.mixer import OverTime
from anyformer.generate.engine.lower import lowers
from anyformer.generate.engine.lower.weights import Matrices
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.masks import CAUSAL, FAR, Causal, Full, Mask, View, Window
from anyformer.parts.attention.scores import StackBias
from anyformer.parts.attention.where import Where
from anyformer.parts.positions import Rotary

FLOOR = -1e9  # added to the score of a hidden pair; finite, so that a row of padding has a softmax
EIGHT = 8  # the node reads heads whose width is a multiple of this


@dataclass(frozen=True)
class Reach:
    """The inputs that layers with the same reach share: how long their buffers are filled.

    `ends` (B,) int32: the index of the last key. `total` (1,) int32: S. `padding` (B, 1, T, S): 0, or `FLOOR`.
    """

    ends: Tensor
    total: Tensor
    padding: Tensor


@dataclass(frozen=True)
class Reaches(Companion):
    """The inputs of all layers, by the largest distance that their masks let them see; `FAR` = any."""

    left_by: ClassVar[str] = "the step of the engine"
    of: dict[int, Reach]


class Bound:
    """Keys and values in bound buffers, (B, G, R, K) each; the node writes the new ones into them."""

    def __init__(self, k: Tensor, v: Tensor):
        self.held = (k, v)


def binds(part: Any) -> bool:
    """True if the node computes this part: then its state can be bound."""
    plain = type(part) is Attention and not part.cross and part.head_dim % EIGHT == 0
    alone = part.scores is None or not any(isinstance(score, OverTime) for score in part.scores) if plain else False
    return alone and (part.mask is None or part.mask.by_distance())


@lowers(Attention)
def _attention(part: Any, to: Matrices) -> dict[str, Any]:
    if not binds(part):
        return {"kernel": "reference"}  # plain operations: no node of ONNX broadcasts as PyTorch's attention does
    heads, groups, width = part.heads, part.kv_heads, part.head_dim
    all_three, left = to.joined(part.q, part.k, part.v), reach(part)

    def forward(x: Tensor, flow: Flow) -> Tensor:
        where = flow.find(Where)
        if where is None:
            q, k, v = all_three(x)  # (B, T, H K), (B, T, G K) twice
        else:
            at = part._asked(x, where, flow)
            q, k, v = part.q(at), part.k(at), part.v(x)
        if part.norm is not None:
            q, k = (part.norm[n](t.unflatten(-1, (-1, width))).flatten(2) for n, t in (("q", q), ("k", k)))
        if part.positions is not None:
            q, k = turned(part.positions, q, heads, flow), turned(part.positions, k, groups, flow)
        q, bias, cap = _scored(part, x, q, left, flow)
        slot = flow.slot(part)
        y, *slot.held = _node(part, q, k, v, slot.held, flow.get(Reaches, "Attention").of[left], bias, cap)
        return part.o(y)

    return {"forward": forward}


def reach(part: Any) -> int:
    """The largest distance to the left that the part's mask lets it see."""
    return FAR if part.mask is None else part.mask.reach()[0]


def plain_mask(mask: Mask | None) -> bool:
    """True if the node itself hides what the mask hides."""
    return mask is None or isinstance(mask, Full | Causal | Window)


def turned(positions: Any, x: Tensor, heads: int, flow: Flow) -> Tensor:
    """Rotary positions, (B, T, heads K) -> same: one node for `Rotary`, else as the part is written."""
    split = x.unflatten(-1, (heads, -1))
    if type(positions) is not Rotary:
        return positions(split, flow).flatten(2)

    def tables() -> tuple[Tensor, Tensor]:
        angles, factor = positions.angles(flow)  # (B, T, 1, K / 2)
        return tuple((t * factor).squeeze(2).expand(*x.shape[:2], -1) for t in (angles.cos(), angles.sin()))  # type: ignore[return-value]

    cos, sin = flow.once(("tables", positions._key), tables)  # (B, T, K / 2) each
    more = {"rotary_embedding_dim": positions.width} if positions.width != split.shape[-1] else {}
    return torch.onnx.ops.symbolic(
        "RotaryEmbedding",
        (x, cos, sin),
        {"num_heads": heads, "interleaved": int(positions.pairs == "adjacent"), **more},
        dtype=x.dtype,
        shape=x.shape,
    )


def _scored(part: Any, x: Tensor, q: Tensor, left: int, flow: Flow) -> tuple[Tensor, Tensor | None, float | None]:
    """The queries after the score parts, what is added to the scores beside padding, (1, 1 or H, T, S), and a cap."""
    stack, some = flow.find(StackBias), flow.get(Reaches, "Attention").of[left]
    if part.scores is None and stack is None and plain_mask(part.mask):
        return q, None, None
    keys, count = some.padding.shape[3], x.shape[1]
    whole = CAUSAL if part.mask is None else CAUSAL & part.mask
    seen = View(whole, flow.first, count, flow.first + count - keys, keys, None, x.device)
    key: Any = (part.mask, "engine")
    bias, cap = None if stack is None else flow.once(("bias", key), lambda: stack(seen)), None
    if part.scores is not None:
        each = q.unflatten(-1, (part.heads, -1)).transpose(1, 2)  # (B, H, T, K)
        each, made, cap = part._changed(x, each, seen, (key, left), flow)
        q, bias = each.transpose(1, 2).flatten(2), made(seen) if callable(made) else made
    if not plain_mask(part.mask):
        hidden = flow.once(("hidden", key), lambda: torch.where(seen.tensor(), 0.0, FLOOR))  # (1, 1, T, S)
        bias = hidden if bias is None else bias + hidden
    return q, bias, cap


def _node(
    part: Any, q: Tensor, k: Tensor, v: Tensor, held: Any, some: Reach, bias: Tensor | None, cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The output (B, T, H K), and the buffers with the new keys and values."""
    added = some.padding if bias is None else some.padding + bias
    window = -1 if not isinstance(part.mask, Window) else part.mask.left + 1
    attributes: dict[str, Any] = {"num_heads": part.heads, "kv_num_heads": part.kv_heads, "local_window_size": window}
    attributes["scale"] = float(part.head_dim**-0.5 if part.scale is None else part.scale)
    if cap is not None:
        attributes["softcap"] = float(cap)
    y, new_k, new_v = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (q, k, v, *held, some.ends, some.total, None, None, None, added),
        attributes,
        dtypes=[q.dtype] * 3,
        shapes=[q.shape, held[0].shape, held[1].shape],
        version=1,
    )
    return y, new_k, new_v
