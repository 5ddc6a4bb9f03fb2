"""Frames of residues: a rotation and an origin each.

... any axes, the same for all tensors of a function; frames are numbers of float32, whatever the model computes in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-8


@dataclass(frozen=True)
class Frames:
    """Rigid motions x -> R x + t from the axes of a residue to those of the protein."""

    rotation: Tensor  # (..., 3, 3)
    origin: Tensor  # (..., 3)

    def __getitem__(self, index: object) -> Frames:
        """Frames of an index of the axes before the last ones; None adds an axis."""
        own = index if isinstance(index, tuple) else (index,)
        return Frames(self.rotation[(*own, slice(None), slice(None))], self.origin[(*own, slice(None))])

    def apply(self, points: Tensor) -> Tensor:
        """Points of the residue in the axes of the protein, (..., 3)."""
        return rotated(self.rotation, points) + self.origin

    def inverse_apply(self, points: Tensor) -> Tensor:
        """Points of the protein in the axes of the residue, (..., 3)."""
        return rotated(self.rotation.mT, points - self.origin)

    def compose(self, other: Frames) -> Frames:
        """The motion of `other`, then this one."""
        return Frames(self.rotation @ other.rotation, self.apply(other.origin))


def rotated(rotation: Tensor, points: Tensor) -> Tensor:
    """R x: (..., 3, 3) and (..., 3) -> (..., 3), in plain sums, which a machine with low-precision products keeps."""
    return (rotation * points[..., None, :]).sum(-1)


def from_quaternion(quaternion: Tensor) -> Tensor:
    """The rotation of unit quaternions (a, b, c, d): (..., 4) -> (..., 3, 3)."""
    a, b, c, d = quaternion.unbind(-1)
    rows = (
        (a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)),
        (2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)),
        (2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def turned(quaternion: Tensor, vector: Tensor) -> Tensor:
    """The unit quaternion q + q (0, b, c, d), normed: a small turn of (1, b, c, d) in the axes of q (Jumper et al.,
    2021; algorithm 23). (..., 4) and (..., 3) -> (..., 4)."""
    a, b, c, d = quaternion.unbind(-1)
    x, y, z = vector.unbind(-1)
    product = (-b * x - c * y - d * z, a * x + c * z - d * y, a * y - b * z + d * x, a * z + b * y - c * x)
    moved = quaternion + torch.stack(product, -1)
    return moved / torch.linalg.vector_norm(moved, dim=-1, keepdim=True)


def from_atoms(before: Tensor, origin: Tensor, beside: Tensor, eps: float = EPS) -> Frames:
    """The frame of three atoms by Gram-Schmidt (algorithm 21): x from `origin` to `beside`; `before` lies
    in the plane of x and y. Atoms on one line, or in one place, give finite numbers and finite gradients, no rotation.

    Args:
        before: N of a residue. origin: CA. beside: C. (..., 3) each.
    """
    x, y = (beside - origin).float(), (before - origin).float()
    first = x / torch.sqrt(x.square().sum(-1, keepdim=True) + eps)
    y = y - first * (first * y).sum(-1, keepdim=True)
    second = y / torch.sqrt(y.square().sum(-1, keepdim=True) + eps)
    third = torch.linalg.cross(first, second)
    return Frames(torch.stack((first, second, third), -1), origin.float())


def superposed(mobile: Tensor, fixed: Tensor, keep: Tensor | None = None) -> Tensor:
    """The points of `mobile` moved onto those of `fixed` with the least squares of distances (Kabsch, 1976), without a
    mirror image.

    Args:
        mobile, fixed: (N, 3). keep: (N,) the points that count, at least one; None: all.
    """
    some = torch.ones(mobile.shape[0], dtype=torch.bool, device=mobile.device) if keep is None else keep
    if not bool(some.any()):
        raise ValueError("no point counts in a superposition; give at least one")
    a, b = mobile[some].double(), fixed[some].double()
    middle, target = a.mean(0), b.mean(0)
    left, _, right = torch.linalg.svd((a - middle).T @ (b - target))
    turn = torch.eye(3, dtype=torch.float64, device=mobile.device)
    turn[2, 2] = torch.sign(torch.det(left) * torch.det(right))
    rotation = left @ turn @ right
    return ((mobile.double() - middle) @ rotation + target).to(mobile.dtype)
