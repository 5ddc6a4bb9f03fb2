"""Objectives over sound. B batch, T frames, U symbols of a text, V vocabulary, K distractors, W width, N samples,
C channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from anyformer.data.labels import IGNORE
from anyformer.media.mels import filters
from anyformer.skeletons.base import Output


def frames_needed(labels: Tensor) -> Tensor:
    """The fewest frames whose paths spell each row: its symbols, and a blank between two equal ones. (B, U) -> (B,)."""
    real = labels != IGNORE
    repeats = (labels[:, 1:] == labels[:, :-1]) & real[:, 1:]
    return real.sum(1) + repeats.sum(1)


@dataclass(frozen=True)
class CTCLoss:
    """-sum log p(symbols | sound) / count, over all paths of frames that spell the symbols (Graves et al., 2006).

    Labels (B, U) are symbols from the left, then -100; `count` is the number of symbols. Frames are those of
    `output.keep`.

    Args:
        blank: the id of the blank, which no label can be.

    Shapes: logits (B, T, V), labels (B, U) -> a number, in nats a symbol.
    """

    blank: int = 0

    def check(self, labels: Tensor) -> None:
        """Raises ValueError for labels that are no symbols, or have gaps."""
        if labels.ndim != 2 or labels.is_floating_point():
            raise ValueError(
                f"labels must be whole numbers (rows, symbols), got {labels.dtype} of {tuple(labels.shape)}"
            )
        if bool((labels == self.blank).any()):
            row = int((labels == self.blank).any(1).nonzero()[0])
            raise ValueError(
                f"row {row}: a label is {self.blank}, the id of the blank, which stands for no symbol and cannot be "
                "learned as one; was the text padded with it? Labels are padded with -100"
            )
        if bool(((labels[:, 1:] != IGNORE) & (labels[:, :-1] == IGNORE)).any()):
            raise ValueError(f"labels have {IGNORE} in front of symbols; it only fills the end of a row")

    def __call__(self, output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
        logits = output.logits
        assert logits is not None, "a model with a CTC head"
        log = logits.float().log_softmax(-1)  # (B, T, V)
        if isinstance(labels, FakeTensor):  # of a prediction of memory: no paths
            return -log[..., self.blank].sum() / count
        self.check(labels)
        B, T = log.shape[:2]
        frames = torch.full((B,), T) if output.keep is None else output.keep.sum(1).cpu()
        real, need = labels != IGNORE, frames_needed(labels).cpu()
        sizes = real.sum(1).cpu()
        if bool((need > frames).any()):
            row = int((need > frames).nonzero()[0])
            raise ValueError(
                f"row {row}: {int(sizes[row])} symbols need at least {int(need[row])} frames, one each and one "
                f"between two equal ones; the sound has {int(frames[row])}: leave it out, or read it by smaller "
                "strides"
            )
        if bool(((labels >= log.shape[2]) | ((labels < 0) & real)).any()):
            raise ValueError(f"labels must be 0 to {log.shape[2] - 1}, the symbols of the head, or {IGNORE}")
        targets = labels.masked_fill(~real, 0)
        total: Tensor = F.ctc_loss(log.transpose(0, 1), targets, frames, sizes, blank=self.blank, reduction="sum")
        return total / count


@dataclass(frozen=True)
class MaskedContrast:
    """-sum log softmax(cos(context_t, target_j) / temperature)[t] / count, over hidden frames t, with j = t and K
    distractors: other hidden frames of the same sound (Baevski et al., 2020; arXiv:2006.11477).

    Labels (B, T, K) are the distractors' frames, -100 where nothing was hidden; `data.hiding` draws them. A
    distractor with the same code vector as the target is left out. Reads the heads `context` and `target`.

    Shapes: heads (B, T, W), labels (B, T, K) -> a number, in nats a hidden frame.
    """

    temperature: float = 0.1

    def counted(self, labels: Tensor) -> Tensor:
        """The number of hidden frames."""
        return (labels[..., 0] != IGNORE).sum()

    def guess(self, labels: Tensor) -> float:
        """Sum of the losses of a uniform guess."""
        return float(self.counted(labels)) * math.log(1 + labels.shape[-1])

    def __call__(self, output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
        context, target = output.heads["context"], output.heads["target"]
        if labels.shape[:2] != context.shape[:2]:
            raise ValueError(f"labels of shape {tuple(labels.shape)} need {tuple(context.shape[:2])} frames")
        if isinstance(labels, FakeTensor):
            rows, places = torch.zeros(2, 1, dtype=torch.long, device=labels.device)
        else:
            rows, places = (labels[..., 0] != IGNORE).nonzero(as_tuple=True)  # (M,)
        own = target[rows, places][:, None]  # (M, 1, W)
        others = target[rows[:, None], labels[rows, places]]  # (M, K, W)
        scores = F.cosine_similarity(
            context[rows, places][:, None].float(), torch.cat((own, others), 1).float(), dim=-1
        )  # (M, 1 + K)
        same = torch.cat((torch.zeros_like(own[..., 0], dtype=torch.bool), (others == own).all(-1)), 1)
        scores = (scores / self.temperature).masked_fill(same, float("-inf"))
        return -scores.log_softmax(1)[:, 0].sum() / count


@dataclass(frozen=True)
class SoundDistance:
    """sum |sound - label| / count, and for each window w of the spectra sum |log mel(sound) - log mel(label)| / (their
    number in `count` samples), of a codec (Défossez et al., 2022; arXiv:2210.13438).

    ```
    mel = filters |DFT of w samples, times a Hann window|, every w / 4;   log x = ln max(x, 1e-3)
    ```
    A window counts where it lies within the real samples of its sound.

    Args:
        rate: samples a second, in Hz.
        windows: w, in samples. mels: filters of each, at most; w / 8 of a short one.

    Labels are the sound, NaN at padding. Shapes: heads sound (B, N, C), labels (B, N, C) -> a number.
    """

    rate: int
    windows: tuple[int, ...] = (128, 512, 2048)
    mels: int = 64
    gaps: ClassVar[bool] = True  # NaN in labels is padding

    def counted(self, labels: Tensor) -> Tensor:
        """The number of real samples."""
        return labels.isfinite().sum()

    def guess(self, labels: Tensor) -> float:
        """The sum of the losses of silence."""
        count = float(self.counted(labels))
        return count * float(self(Output(heads={"sound": torch.zeros_like(labels)}), labels, count))

    def __call__(self, output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
        real = labels.isfinite()
        wanted = labels.nan_to_num(0.0)
        made = output.heads["sound"].float().masked_fill(~real, 0.0)
        total = (made - wanted).abs().sum() / count
        for window in self.windows:
            if window <= labels.shape[1]:
                mels = min(self.mels, window // 8)
                apart = (self._log_mels(made, window, mels) - self._log_mels(wanted, window, mels)).abs().sum(1)
                ends = window + window // 4 * torch.arange(apart.shape[1], device=apart.device)  # of the windows
                within = ends <= real.all(-1).sum(1).repeat_interleave(labels.shape[2])[:, None]  # (B C, frames)
                total = total + apart.masked_fill(~within, 0.0).sum() * (window // 4) / (count * mels)
        return total

    def _log_mels(self, x: Tensor, window: int, mels: int) -> Tensor:
        """(B, N, C) -> (B C, M, frames)."""
        rows = x.mT.flatten(0, 1)
        shape = torch.hann_window(window, device=x.device)
        waves = torch.stft(rows, window, window // 4, window=shape, center=False, return_complex=True).abs()
        weights = filters(mels, window // 2 + 1, self.rate, self.rate / 2).to(x.device)  # (M, K)
        return (weights @ waves).clamp(min=1e-3).log()
