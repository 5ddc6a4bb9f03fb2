"""Mel-frequency cepstral coefficients at the frames of a model. N samples, T frames, M mels, K frequencies."""

from __future__ import annotations

import numpy as np

from anyformer.media.mels import LEAST, filters

MELS, COEFFICIENTS = 40, 13
WINDOW = 0.025  # seconds of a frame


def mfcc(samples: np.ndarray, rate: int, centres: np.ndarray) -> np.ndarray:
    """13 coefficients with their first and second differences (Davis and Mermelstein, 1980), (T, 39) float32.

    ```
    log max(filters |DFT of a Hann window of 25 ms around a centre|^2, 1e-10) (T, M) ── cosine transform, first 13
    ```
    Beyond the ends of the sound there is silence.

    Args:
        samples: (N,). rate: in Hz. centres: (T,) samples, in their order.
    """
    size = round(WINDOW * rate)
    around = np.pad(samples.astype(np.float32), size)
    starts = np.round(centres).astype(np.int64) + size - size // 2
    frames = around[starts[:, None] + np.arange(size)] * np.hanning(size)  # (T, size)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2  # (T, K)
    logs = np.log(np.maximum(power @ filters(MELS, power.shape[1], rate).numpy().T, LEAST))  # (T, M)
    places = (np.arange(MELS) + 0.5) * np.pi / MELS
    basis = np.cos(np.arange(COEFFICIENTS)[:, None] * places) * np.sqrt(2 / MELS)  # (13, M)
    basis[0] /= np.sqrt(2)
    each = logs @ basis.T
    first = slopes(each)
    return np.concatenate((each, first, slopes(first)), 1).astype(np.float32)


def slopes(x: np.ndarray) -> np.ndarray:
    """The change from frame to frame, (T, C): half the difference of a frame's neighbours."""
    return np.gradient(x, axis=0) if len(x) > 1 else np.zeros_like(x)
