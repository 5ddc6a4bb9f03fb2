"""The kernels of mamba-ssm (Gu and Dao; `pip install mamba-ssm`), if it is installed and the numbers are on CUDA.

They compute `mamba.scan` and `chunked.decayed` in one pass over memory. Mamba and Mamba-2 use them by default, in
float32, for more than one token:
  Mamba     at the beginning of a text, without packed documents; with a cache only without gradients (the
            kernel begins with an empty state, and has no gradient of the last one)
  Mamba-2   always
Everything else, every other device, and compiled or exported models use the plain operations.

B batch, T time, E inner width, N state, G groups, R heads of a group, P head width.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anyformer.parts.fused import traced

PACKAGE = "mamba_ssm"
CHUNK = 128  # tokens of a chunk of Mamba-2's kernel; it does not change the result
Kernel = Callable[..., Any]


def selective_scan(like: Tensor) -> Kernel | None:
    """Mamba's kernel, or None if it does not support tensors like `like`, (B, T, E)."""
    return load_kernel("ops.selective_scan_interface", "selective_scan_fn") if fits(like, like.shape[1]) else None


def chunk_scan(like: Tensor) -> Kernel | None:
    """Mamba-2's kernel, or None if it does not support tensors like `like`, (…, T, P)."""
    return load_kernel("ops.triton.ssd_combined", "mamba_chunk_scan_combined") if fits(like, like.shape[-2]) else None


def fits(like: Tensor, time: int | torch.SymInt) -> bool:
    """True for more than one token, in float32, on CUDA, not under a compiler."""
    return like.is_cuda and like.dtype == torch.float32 and not traced(like) and time > 1


@functools.cache
def load_kernel(module: str, name: str) -> Kernel | None:
    """A function of mamba-ssm, or None without the package; a broken installation is reported once."""
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    try:
        return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
    except (ImportError, AttributeError) as error:
        warnings.warn(
            f"mamba-ssm is installed, but {module}.{name} cannot be used ({error}); Mamba runs in plain operations, "
            "more slowly. Install a mamba-ssm that was built for this torch and CUDA, or uninstall it",
            stacklevel=2,
        )
        return None


def scanned(kernel: Kernel, u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """`mamba.scan` from an empty state. Shapes: u, step (B, T, E); A (E, N); B, C (B, T, N) -> (B, T, E), (B, E, N)."""
    y, h = kernel(u.mT, step.mT, A, B.mT, C.mT, return_last_state=True)
    return y.mT, h


def chunked(
    kernel: Kernel, q: Tensor, k: Tensor, u: Tensor, step: Tensor, A: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`chunked.decayed(q, k, step u, step A, state)`.

    Shapes: q, k (B, G, 1, T, N); u (B, G, R, T, P); step (B, G, R, T, 1); A (G, R, 1); state (B, G, R, N, P) -> y (B,
    G, R, T, P), the last state.
    """
    inputs, steps = (t.movedim(3, 1).flatten(2, 3) for t in (u, step))  # (B, T, G R, P), (B, T, G R, 1)
    keys, queries = (t[:, :, 0].transpose(1, 2) for t in (k, q))  # (B, T, G, N)
    y, last = kernel(
        inputs, steps[..., 0], A.flatten(), keys, queries, CHUNK,
        initial_states=state.flatten(1, 2).mT.contiguous(), return_final_states=True,
    )  # fmt: skip
    heads = (u.shape[1], u.shape[2])
    return y.unflatten(2, heads).movedim(1, 3), last.unflatten(1, heads).mT
