"""From residues and pairs to atoms: invariant point attention, frames, torsion angles.

B batch, L residues, D width of residues, C width of pairs, H heads, K head width, P points of a head, N layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Companion, Flow
from anyformer.core.part import Part, drop
from anyformer.parts.folding import residues
from anyformer.parts.folding.attention import PairPart, closed, lecun
from anyformer.parts.folding.frames import Frames, from_quaternion, rotated, turned
from anyformer.parts.norms import LayerNorm

ONE = 0.541324854612918  # softplus of it is 1


@dataclass(frozen=True)
class Folded(Companion):
    """The structure of each protein. Numbers are float32, lengths in angstrom; N layers, the last one counts."""

    left_by: ClassVar[str] = "StructureModule"
    per_position: ClassVar[bool] = True
    states: Tensor  # (B, L, D) residues after the last layer
    frames: Tensor  # (B, L, N, 7) unit quaternion and origin
    raw_angles: Tensor  # (B, L, N, 7, 2) sine and cosine, before they are normed
    angles: Tensor  # (B, L, N, 7, 2) omega, phi, psi, chi 1 to 4
    positions: Tensor  # (B, L, 14, 3) atoms, 0 where a residue has none


class InvariantPointAttention(PairPart):
    """Attention in space: no motion of the whole protein changes it (Jumper et al., 2021; algorithm 22).

    ```
    score = (q k / sqrt(K) + linear(z) - w/2 sqrt(2 / (9 P)) sum over points of |T_i q_p - T_j k_p|^2) / sqrt(3)
    out   = linear [values, points seen from T_i: x…, y…, z…, their lengths, pairs]
    ```
    w is softplus of a number for each head. Points move with the frame T of their residue.

    Args:
        heads: H. `head_dim`: K. `queries`: points of q and k. `points`: those of v.
        eps: under the root of lengths.

    Shape: (B, L, D), (B, L, L, C), frames (B, L) -> (B, L, D). Taps: `weights` (B, H, L, L), of its last layer.
    """

    def __init__(
        self,
        dim: int,
        pair_dim: int,
        heads: int = 12,
        head_dim: int = 16,
        queries: int = 4,
        points: int = 8,
        eps: float = 1e-8,
    ):
        super().__init__()
        if min(heads, head_dim, queries, points) < 1:
            raise ValueError(
                f"InvariantPointAttention: heads={heads}, head_dim={head_dim}, queries={queries}, points={points} must "
                "be at least 1"
            )
        self.heads, self.head_dim, self.queries, self.points, self.eps = heads, head_dim, queries, points, eps
        self.q, self.kv = nn.Linear(dim, heads * head_dim), nn.Linear(dim, 2 * heads * head_dim)
        self.q_points = nn.Linear(dim, 3 * heads * queries)
        self.kv_points = nn.Linear(dim, 3 * heads * (queries + points))
        self.bias = nn.Linear(pair_dim, heads)
        self.weights = nn.Parameter(torch.full((heads,), ONE))
        self.o = nn.Linear(heads * (pair_dim + head_dim + 4 * points), dim)

    def reset_parameters(self) -> None:
        for layer in (self.q, self.kv, self.q_points, self.kv_points, self.bias):
            lecun(layer)
        closed(self.o)
        nn.init.constant_(self.weights, ONE)

    def forward(self, x: Tensor, z: Tensor, frames: Frames, flow: Flow) -> Tensor:
        k, v = self._split(self.kv(x), 2 * self.head_dim).chunk(2, -1)  # (B, L, H, K)
        points = self._moved(self.kv_points(x), frames)  # (B, L, H, queries + P, 3)
        weights = self.attention(x, z, k, points[..., : self.queries, :], frames, flow)  # (B, H, L, L)
        if flow.taps is not None and flow.taps.wants(self, "weights"):
            flow.taps.put(self, "weights", weights)
        y = torch.einsum("bhij,bjhk->bihk", weights, v.to(weights.dtype)).flatten(2)
        seen = torch.einsum("bhij,bjhpx->bihpx", weights.to(points.dtype), points[..., self.queries :, :])
        seen = frames[..., None, None].inverse_apply(seen)
        lengths = torch.sqrt(seen.square().sum(-1) + self.eps)
        pairs = torch.einsum("bhij,bijc->bihc", weights, z.to(weights.dtype)).flatten(2)
        axes = [seen[..., axis].flatten(2) for axis in range(3)]
        return self.o(torch.cat((y, *axes, lengths.flatten(2), pairs), -1).to(x.dtype))

    def attention(self, x: Tensor, z: Tensor, k: Tensor, others: Tensor, frames: Frames, flow: Flow) -> Tensor:
        """The weights, (B, H, L, L), in float32; k (B, L, H, K), and its points (B, L, H, P, 3)."""
        q = self._split(self.q(x), self.head_dim)
        scores = torch.einsum("bihk,bjhk->bhij", wide(q), wide(k)) * (3 * self.head_dim) ** -0.5
        scores = scores + 3**-0.5 * wide(self.bias(z)).permute(0, 3, 1, 2)
        own = self._moved(self.q_points(x), frames)  # (B, L, H, P, 3)
        apart = sum((own[:, :, None, ..., i] - others[:, None, ..., i]).square() for i in range(3))  # (B, L, L, H, P)
        scale = F.softplus(wide(self.weights)) * (3 * self.queries * 9 / 2) ** -0.5
        scores = scores - 0.5 * (torch.as_tensor(apart).sum(-1) * scale).permute(0, 3, 1, 2)
        keep = flow.keep_now(x.shape[1])
        if keep is None:
            return scores.softmax(-1)
        hidden = ~keep[:, None, None]
        return scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hidden, 0.0)

    def _split(self, x: Tensor, size: int) -> Tensor:
        return x.unflatten(-1, (self.heads, size))  # (B, L, H, K)

    def _moved(self, x: Tensor, frames: Frames) -> Tensor:
        """Points of each head in the axes of the protein, (B, L, H, P, 3); files store x of all, then y, then z."""
        points = torch.stack(wide(x).chunk(3, -1), -1).unflatten(2, (self.heads, -1))
        return frames[..., None, None].apply(points)


class Resnet(Part):
    """Torsion angles of each residue by a small network (algorithm 20, lines 11 to 14).

    ```
    linear(relu(x)) + linear(relu(first)) ── x + linear(relu(linear(relu(x)))) … ── relu ── linear ── (sine, cosine)
    ```
    Args:
        hidden: its width. `depth`: of its residual layers.
        eps: the least squared length of a (sine, cosine) before it is normed.

    Shape: (B, L, D) twice -> (B, L, 7, 2) raw and normed.
    """

    def __init__(self, dim: int, hidden: int = 128, depth: int = 2, eps: float = 1e-8):
        super().__init__()
        if hidden < 1 or depth < 0:
            raise ValueError(f"Resnet: hidden must be at least 1 and depth at least 0, got {hidden} and {depth}")
        self.enter, self.enter_first, self.eps = nn.Linear(dim, hidden), nn.Linear(dim, hidden), eps
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)]) for _ in range(depth)
        )
        self.o = nn.Linear(hidden, 2 * residues.ANGLES)

    def reset_parameters(self) -> None:
        for layer in (self.enter, self.enter_first, self.o):
            lecun(layer)
        for up, down in self._pairs():
            lecun(up, 2.0)
            closed(down)

    def forward(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        x = self.enter(torch.relu(x)) + self.enter_first(torch.relu(first))
        for up, down in self._pairs():
            x = x + down(torch.relu(up(torch.relu(x))))
        raw = wide(self.o(torch.relu(x))).unflatten(-1, (residues.ANGLES, 2))
        return raw, raw / torch.sqrt(raw.square().sum(-1, keepdim=True).clamp(min=self.eps))

    def _pairs(self) -> list[tuple[nn.Linear, nn.Linear]]:
        return [(pair[0], pair[1]) for pair in self.layers]  # type: ignore[index]


class Residual(Part):
    """x + three linear layers with relu between (algorithm 20, line 9). Shape: (B, L, D) -> same."""

    def __init__(self, dim: int):
        super().__init__()
        self.first, self.second, self.o = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def reset_parameters(self) -> None:
        lecun(self.first, 2.0)
        lecun(self.second, 2.0)
        closed(self.o)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.o(torch.relu(self.second(torch.relu(self.first(x)))))


class StructureModule(PairPart):
    """Frames of residues, moved layer by layer, and their atoms (algorithm 20). All layers share their weights.

    ```
    x ── linear ── norm ── linear ──┬─ IPA ─(+)─ norm ─ MLP ─ norm ──┬── … x N ── angles ── atoms
    pairs ── linear ── norm ────────┴──^        frames ─ turned, moved ┘
    ```
    All residues begin in one place. The gradient of a turn ends at the next layer.

    Args:
        width: D' of residues. `pair_width`: C' of pairs, projected; None: they stay as they are.
        layers: N. `transitions`: MLPs of a layer.
        scale: angstrom for a step of length 1.
        heads, head_dim, queries, points: of InvariantPointAttention. `hidden`, `depth`: of Resnet.
        eps: of both. `dropout`: after attention and after the MLPs.

    Shape: (B, L, D), (B, L, L, C) -> `Folded`.
    """

    def __init__(
        self,
        dim: int,
        pair_dim: int,
        width: int = 384,
        pair_width: int | None = None,
        layers: int = 8,
        transitions: int = 1,
        scale: float = 10.0,
        heads: int = 12,
        head_dim: int = 16,
        queries: int = 4,
        points: int = 8,
        hidden: int = 128,
        depth: int = 2,
        eps: float = 1e-8,
        dropout: float = 0.0,
    ):
        super().__init__()
        if min(width, layers) < 1 or transitions < 0 or scale <= 0:
            raise ValueError(
                f"StructureModule: width={width} and layers={layers} must be at least 1, transitions={transitions} at "
                f"least 0, scale={scale} above 0"
            )
        pairs = pair_dim if pair_width is None else pair_width
        self.steps, self.scale, self.dropout = layers, scale, dropout
        self.single = nn.Linear(dim, width)
        self.pair = None if pair_width is None else nn.Linear(pair_dim, pairs)
        self.norm, self.norm_pair, self.enter = LayerNorm(width), LayerNorm(pairs), nn.Linear(width, width)
        self.attention = InvariantPointAttention(width, pairs, heads, head_dim, queries, points, eps)
        self.norm_attention, self.norm_transition = LayerNorm(width), LayerNorm(width)
        self.transition = nn.ModuleList(Residual(width) for _ in range(transitions))
        self.update, self.angles = nn.Linear(width, 6), Resnet(width, hidden, depth, eps)

    def reset_parameters(self) -> None:
        lecun(self.enter)
        closed(self.update)

    def forward(self, x: Tensor, z: Tensor, flow: Flow, chain: Tensor) -> Folded:
        first = x = self.norm(self.single(x))  # (B, L, D')
        z = self.norm_pair(z if self.pair is None else self.pair(z))
        x = self.enter(x)
        quaternion = torch.zeros(*x.shape[:2], 4, dtype=wide(x).dtype, device=x.device)
        quaternion[..., 0] = 1.0
        frames = Frames(from_quaternion(quaternion), torch.zeros_like(quaternion[..., 1:]))
        made: list[tuple[Tensor, ...]] = []
        for _ in range(self.steps):
            x = self.norm_attention(drop(self, x + self.attention(x, z, frames, flow)))
            for transition in self.transition:
                x = transition(x)
            x = self.norm_transition(drop(self, x))
            turn, move = self.update(x).to(quaternion.dtype).chunk(2, -1)
            origin = frames.origin + rotated(frames.rotation, move)
            quaternion = turned(quaternion, turn)
            now = Frames(from_quaternion(quaternion), origin)
            raw, angles = self.angles(x, first)
            made.append((torch.cat((quaternion, origin * self.scale), -1), raw, angles))
            quaternion = quaternion.detach()
            frames = Frames(now.rotation.detach(), origin)
        placed = atoms(Frames(now.rotation, now.origin * self.scale), angles, chain)
        each = [torch.stack(values, 2) for values in zip(*made, strict=True)]  # (B, L, N, …)
        turns, raw, angles = each
        return Folded(x, turns, raw, angles, placed)


def wide(x: Tensor) -> Tensor:
    """The same numbers in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def all_frames(backbone: Frames, angles: Tensor, chain: Tensor) -> Frames:
    """The frames of all rigid groups (algorithm 24): (B, L), angles (B, L, 7, 2) of (sine, cosine) -> (B, L, 8)."""
    usual = [t.to(chain.device)[chain].to(angles.dtype) for t in residues.FRAMES]  # (B, L, 8, 3, 3), (B, L, 8, 3)
    none = torch.zeros_like(angles[..., :1, :])
    none = torch.cat((none[..., :1], none[..., 1:] + 1.0), -1)  # the backbone turns by nothing
    sine, cosine = torch.cat((none, angles), -2).unbind(-1)  # (B, L, 8)
    zero, one = torch.zeros_like(sine), torch.ones_like(sine)
    rows = ((one, zero, zero), (zero, cosine, -sine), (zero, sine, cosine))
    turn = torch.stack([torch.stack(row, -1) for row in rows], -2)
    own = Frames(usual[0] @ turn, usual[1])
    chi = [own[:, :, residues.FIRST_CHI]]
    for group in range(residues.FIRST_CHI + 1, residues.GROUPS):  # each is carried by the one before
        chi.append(chi[-1].compose(own[:, :, group]))
    start = residues.FIRST_CHI
    rotation = torch.cat((own.rotation[:, :, :start], torch.stack([c.rotation for c in chi], 2)), 2)
    origin = torch.cat((own.origin[:, :, :start], torch.stack([c.origin for c in chi], 2)), 2)
    return backbone[:, :, None].compose(Frames(rotation, origin))


def atoms(backbone: Frames, angles: Tensor, chain: Tensor) -> Tensor:
    """The atoms of each residue, (B, L, 14, 3), 0 where it has none."""
    frames = all_frames(backbone, angles, chain)
    device = chain.device
    group, place = residues.GROUP.to(device)[chain], residues.PLACES.to(device)[chain]  # (B, L, 14), …
    chosen = Frames(
        frames.rotation.gather(2, group[..., None, None].expand(*group.shape, 3, 3)),
        frames.origin.gather(2, group[..., None].expand(*group.shape, 3)),
    )
    there = residues.EXISTS.to(device)[chain]
    return chosen.apply(place.to(angles.dtype)).masked_fill(~there[..., None], 0.0)
