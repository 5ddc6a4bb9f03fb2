"""Log-mel features of sound, as published for Whisper. N samples, F frames, M mels, K frequencies."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

LEAST, RANGE = 1e-10, 8.0  # of power; the quietest feature below the loudest, in powers of ten
TOP = 8000.0  # Hz, the end of the last filter
PIECE = 6000  # frames at a time: memory does not grow with the length of the sound


def log_mels(samples: np.ndarray, mels: int, rate: int, size: int, hop: int) -> Tensor:
    """The features of a sound of N samples, (M, N // hop), float32.

    ```
    power_k,f = |DFT of `size` samples around sample f hop, times a Hann window|^2
    x = log10 max(filters power, 1e-10);  features = (max(x, max x - 8) + 4) / 4
    ```
    The sound is mirrored at both ends. The loudest feature is that of the whole sound.

    Args:
        samples: (N,), N > size / 2. rate: in Hz. size, hop: samples of a frame, and between two frames.
    """
    count = len(samples) // hop
    inner = torch.from_numpy(samples)[None, None]
    padded = torch.nn.functional.pad(inner, (size // 2, size // 2), mode="reflect")[0, 0]
    window, weights = torch.hann_window(size), filters(mels, size // 2 + 1, rate)  # (M, K)
    powers = torch.empty(mels, count)
    for first in range(0, count, PIECE):
        last = min(count, first + PIECE)
        piece = padded[first * hop : (last - 1) * hop + size]
        waves = torch.stft(piece, size, hop, window=window, center=False, return_complex=True)  # (K, F)
        powers[:, first:last] = weights @ (waves.abs() ** 2)
    x = powers.clamp(min=LEAST).log10()
    return (torch.maximum(x, x.max() - RANGE) + 4.0) / 4.0


@functools.lru_cache(maxsize=8)
def filters(mels: int, frequencies: int, rate: int, top: float = TOP) -> Tensor:
    """Triangles over the frequencies, (M, K), evenly spaced on Slaney's scale of mels, each of area 1 (in Hz).

    The scale is linear up to 1000 Hz, 15 mels, and logarithmic above (Slaney, 1998, "Auditory Toolbox"). `top` is the
    end of the last filter, in Hz.
    """
    edges = hertz(np.linspace(0.0, mel(top), mels + 2))  # (M + 2,)
    lines = np.linspace(0.0, rate / 2, frequencies)  # (K,)
    widths = np.diff(edges)
    slopes = edges[:, None] - lines  # (M + 2, K)
    triangles = np.maximum(0.0, np.minimum(-slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]))
    return torch.from_numpy((triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32))


STEP = np.log(6.4) / 27.0  # of the logarithm of the frequency, a mel


def mel(frequency: float) -> float:
    """Hz to mels."""
    return 3 * frequency / 200 if frequency < 1000 else 15 + np.log(frequency / 1000) / STEP


def hertz(mels: np.ndarray) -> np.ndarray:
    """Mels to Hz."""
    return np.where(mels < 15, 200 * mels / 3, 1000 * np.exp(STEP * (np.maximum(mels, 15) - 15)))
