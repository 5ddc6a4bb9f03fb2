"""Objectives: losses over counted labels. B batch, T time, V vocabulary, C classes, D width, P pairs.

Every objective is `objective(output, labels, count) -> loss`: the *sum* over the counted labels of this batch, divided
by `count`, their number in the whole step: in all accumulated batches, on all machines. So neither padding nor the cut
of a step into batches changes the loss or its gradient.

A label stands at the place of its prediction: `labels[b, t]` is the target of `logits[b, t]`. For a causal model that
is the *next* token; `next_tokens` makes such labels. The label -100 is not counted.

An option is set by `functools.partial(seq2seq, label_smoothing=0.1)`. An objective whose labels are of more than one
kind has a method `counted(labels)` of its own; it is then given as many counts as that returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from anyformer.data.labels import IGNORE
from anyformer.data.labels import next_tokens as next_tokens  # a part of this module's interface
from anyformer.data.labels import shift_right as shift_right
from anyformer.hub.pooling import MODES, pooled
from anyformer.parts.unscored import Unscored
from anyformer.skeletons.base import Output
from anyformer.train.preferences import Preference

Objective = Callable[[Output, Tensor, Tensor | float], Tensor]


def counted(labels: Tensor) -> Tensor:
    """The number of labels that count: a whole number, in a tensor of no dimensions."""
    return (labels != IGNORE).sum()


def adjusted(objective: Any, **options: float) -> Objective:
    """The objective with options, label_smoothing or z_loss; those of 0 are left out.

    Raises:
        ValueError: if it has no such option.
    """
    chosen = {name: value for name, value in options.items() if value}
    for name, value in chosen.items():
        if name not in inspect.signature(objective).parameters:
            raise ValueError(f"{name}={value} is for objectives over classes or tokens; this task's has none")
    return partial(objective, **chosen) if chosen else objective


def plain(objective: Any) -> Any:
    """The objective without the options of `functools.partial`."""
    return getattr(objective, "func", objective)


def in_pieces(objective: Any) -> bool:
    """True for an objective that takes logits which are left to it (`parts.unscored`)."""
    return isinstance(objective, MaskedAndNextSentence | Preference) or plain(objective) in OVER_TOKENS


def causal_lm(
    output: Output, labels: Tensor, count: Tensor | float, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """-sum log p(label at t | tokens up to t) / count.

    With `label_smoothing` e the target is (1 - e) for the label and e / V for every token (Szegedy et al., 2015;
    arXiv:1512.00567). `z_loss` z adds z log^2 sum exp(logits), which keeps that sum near 1 (Chowdhery et al., 2022;
    arXiv:2204.02311).
    Shapes: logits (B, T, V), labels (B, T) -> a number, in nats a token.
    """
    return _cross_entropy(output.logits, labels, count, label_smoothing, z_loss)


def seq2seq(
    output: Output, labels: Tensor, count: Tensor | float, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """-sum log p(label at t | source, labels before t) / count, for an encoder-decoder that read `shift_right(labels)`.

    For translation, span corruption (T5: `data.corrupt.spans`) and denoising (BART: `data.corrupt.infill`), which
    differ in their sources.
    Shapes: logits (B, T, V), labels (B, T) -> a number, in nats a token.
    """
    return _cross_entropy(output.logits, labels, count, label_smoothing, z_loss)


def reconstruction(output: Output, labels: Tensor, count: Tensor | float, divergence: float = 0.0) -> Tensor:
    """sum (pixels - labels)^2 / count + divergence * mean over cells and pictures of KL(q(code | cell) | uniform), of a
    discrete autoencoder.

    Both are means: neither the number of pictures nor of cells changes their balance.

    Args:
        labels: (B, C, height, width), the pictures in the scale of `pixel_values`. count: their numbers, in the step.
        divergence: its weight; DALL-E had 6.6.

    Shapes: heads pixels (B, C, height, width), codes (B, T, V) -> a number.
    """
    error = (output.heads["pixels"] - labels).square().sum() / count
    if not divergence:
        return error
    log = output.heads["codes"].log_softmax(-1)  # (B, T, V)
    apart = (log.exp() * (log + torch.tensor(float(log.shape[-1])).log())).sum()
    return error + divergence * apart * (labels[0].numel() / log.shape[1]) / count  # a cell has so many numbers


def masked_lm(output: Output, labels: Tensor, count: Tensor | float, z_loss: float = 0.0) -> Tensor:
    """-sum log p(label at t | all tokens) / count (BERT). Labels are -100 wherever nothing was hidden.

    Reads the head `mlm`, else the first one.
    Shapes: logits (B, T, V), labels (B, T) -> a number, in nats a hidden token.
    """
    return _cross_entropy(output.heads.get("mlm", output.logits), labels, count, z_loss=z_loss)


OVER_TOKENS = (causal_lm, seq2seq, masked_lm)


def next_sentence(output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
    """-sum log p(label | both sentences) / count: 0 = the second one follows the first, 1 = it does not (BERT).

    Reads the head `nsp`. Shapes: logits (B, 2), labels (B,) -> a number, in nats a pair.
    """
    return _cross_entropy(output.heads.get("nsp"), labels, count)


@dataclass(frozen=True)
class MaskedAndNextSentence:
    """BERT's two objectives at once (Devlin et al., 2018; arXiv:1810.04805): their sum, each the mean over its own
    labels.

    Shapes: heads mlm (B, T, V) and nsp (B, 2), labels (B, 1 + T): the pair's label, then those of the tokens.
    """

    def counted(self, labels: Tensor) -> Tensor:
        """(2,): hidden tokens, pairs."""
        return torch.stack((counted(labels[:, 1:]), counted(labels[:, 0])))

    def __call__(self, output: Output, labels: Tensor, count: Tensor) -> Tensor:
        return masked_lm(output, labels[:, 1:], count[0]) + next_sentence(output, labels[:, 0], count[1])


def classification(output: Output, labels: Tensor, count: Tensor | float, label_smoothing: float = 0.0) -> Tensor:
    """-sum log p(label | input) / count, for a whole text or image, or for each token.

    Shapes: logits (B, C), labels (B,), or logits (B, T, C), labels (B, T) -> a number, in nats a label.
    """
    return _cross_entropy(output.logits, labels, count, label_smoothing)


def regression(output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
    """sum (number - label)^2 / count, for each number of an answer that has several. Labels of -100 are not counted.

    Shapes: logits (B, T, A), labels (B, T, A) -> a number.
    """
    if output.logits is None or output.logits.shape != labels.shape:
        got = "no numbers" if output.logits is None else f"{tuple(output.logits.shape)}"
        raise ValueError(f"labels of shape {tuple(labels.shape)} need one number each; the model returned {got}")
    x, seen = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32)), labels != IGNORE
    return (x - labels).masked_fill(~seen, 0.0).square().sum() / count


@dataclass(frozen=True)
class Contrastive:
    """InfoNCE for sentence vectors: of all second texts, find the one that goes with the first (van den Oord et al.,
    2018; arXiv:1807.03748, with the other pairs as negatives: Henderson et al., 2017; arXiv:1705.00652).

    ```
    rows 0 1 | 2 3 | 4 5     = a0 b0 | a1 b1 | a2 b2          -log softmax_j(cos(a_i, b_j) / temperature)[i]
    ```
    Labels (2P,) number the pairs, both rows alike; pairs with the same number are not each other's negatives; a pair
    labelled -100 is used only as a negative. The mean is over all counted pairs of the step.

    The negatives are the pairs of one *batch*, on all processes, which exchange their vectors in training: the number
    of processes changes nothing. Accumulated batches do not see each other: `accumulate` adds pairs to the mean, and no
    negatives. For more of these, make the batch larger.

    Args:
        temperature: by which the cosine is divided.
        symmetric: the mean of both directions: the first texts are looked for as well.
        pooling: how a text's tokens become its vector, as in `generate.embed`: mean, max, cls or lasttoken.
    """

    temperature: float = 0.05
    symmetric: bool = False
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.pooling not in MODES:
            raise ValueError(f"pooling must be one of {', '.join(MODES)}; got {self.pooling!r}")

    def counted(self, labels: Tensor) -> Tensor:
        """The number of pairs that count."""
        return counted(labels[::2])

    def check(self, labels: Tensor) -> None:
        """Raises ValueError for labels that number no pairs."""
        if labels.ndim != 1 or len(labels) % 2 or not torch.equal(labels[::2], labels[1::2]):
            raise ValueError(f"labels must be (rows,), a pair's number at both of its rows, got {labels.tolist()}")

    def __call__(self, output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
        if not isinstance(labels, FakeTensor):  # those of a prediction have no content
            self.check(labels)
        assert output.hidden is not None, "a model with one stream"
        vectors = F.normalize(pooled(output.hidden, output.keep, self.pooling), dim=-1)  # (2P, D)
        every, numbers, first = gathered(vectors, labels)
        loss = self._find(vectors[::2], every[1::2], labels[::2], numbers[::2], first // 2)
        if self.symmetric:
            loss = (loss + self._find(vectors[1::2], every[::2], labels[::2], numbers[::2], first // 2)) / 2
        return loss / count

    def _find(self, x: Tensor, others: Tensor, labels: Tensor, numbers: Tensor, first: int) -> Tensor:
        """The sum over pairs; row i of `x` goes with row `first` + i of `others`. (P, D), (all P, D) -> a number."""
        return find_own(x @ others.mT / self.temperature, labels, numbers, first)


@dataclass(frozen=True)
class Matching:
    """CLIP's loss (Radford et al., 2021; arXiv:2103.00020): of all texts find the picture's, and the other way round.

    ```
    s_ij = scale * image_i . text_j
    loss = -(sum_i log softmax_j(s_ij)[i] + sum_j log softmax_i(s_ij)[j]) / (2 count)
    ```
    Labels (B,) are numbers of the texts: rows with the same number are not each other's negatives; a row labelled
    -100 is used only as a negative. With labels that all differ it is the loss of the published code.

    The negatives are the rows of one *batch*, on all processes, which exchange their vectors with gradients: the number
    of processes changes nothing. Accumulated batches would not see each other, so they are refused.
    """

    across: ClassVar[bool] = True  # a step's rows must be one batch

    def __call__(self, output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
        image, text, scale = (output.heads[name] for name in ("image", "text", "scale"))
        both, numbers, first = gathered(torch.cat((image, text), -1), labels)  # (N, 2 E)
        images, texts = both.chunk(2, -1)
        of_images = find_own((scale * image @ texts.mT).float(), labels, numbers, first)
        return (of_images + find_own((scale * text @ images.mT).float(), labels, numbers, first)) / (2 * count)

    def counted(self, labels: Tensor) -> Tensor:
        """The number of rows that count."""
        return counted(labels)

    def guess(self, labels: Tensor) -> float:
        """Sum of the losses of a uniform guess over all allowed answers."""
        allowed = (as_right(labels, labels, 0).logical_not()).sum(1)  # (B,)
        return float(allowed[labels != IGNORE].log().sum())


def find_own(scores: Tensor, labels: Tensor, numbers: Tensor, first: int) -> Tensor:
    """-sum over rows of log softmax(scores) at a row's own column, `first` + its number; without rows of -100, and
    without the columns that are as right. (B, N), (B,), (N,) -> a number."""
    target = (torch.arange(len(labels), device=labels.device) + first).masked_fill(labels == IGNORE, IGNORE)
    scores = scores.masked_fill(as_right(labels, numbers, first), float("-inf"))
    return F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="sum")


def as_right(labels: Tensor, numbers: Tensor, first: int) -> Tensor:
    """The columns that are as right as a row's own one, and so not its negatives, (B, N)."""
    rows = torch.arange(len(labels), device=labels.device)
    alike = (labels[:, None] == numbers) & (numbers != IGNORE)
    alike[rows, rows + first] = False
    return alike


class _AllRows(torch.autograd.Function):
    """The equal-sized rows of every process, stacked, whose gradient is the sum of all processes' gradients.

    No process group is kept for the way back: one that outlives its end leaves gloo's threads running at exit.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        import torch.distributed as dist

        every = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(every, rows.contiguous())
        return torch.stack(every)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        import torch.distributed as dist

        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


def gathered(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """The rows and labels of all processes while learning, with gradients, and where this one's begin.

    Shapes: (N, D), (N,) -> (all N, D), (all N,).
    """
    import torch.distributed as dist

    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    if alone or not torch.is_grad_enabled():  # whoever measures may be on its own
        return rows, labels, 0
    counts = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    sizes = [int(count) for count in counts]
    short = max(sizes) - len(rows)  # all must send alike
    every = _AllRows.apply(F.pad(rows, (0, 0, 0, short)))
    numbers = [torch.empty(max(sizes), dtype=labels.dtype, device=labels.device) for _ in sizes]
    dist.all_gather(numbers, F.pad(labels, (0, short)))
    cut = [torch.cat([t[:size] for t, size in zip(parts, sizes, strict=True)]) for parts in (every, numbers)]
    return cut[0], cut[1], sum(sizes[: dist.get_rank()])


def _cross_entropy(
    logits: Tensor | Unscored | None,
    labels: Tensor,
    count: Tensor | float,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    if logits is None or logits.shape[:-1] != labels.shape:
        got = "no logits" if logits is None else f"logits {tuple(logits.shape)}"
        raise ValueError(f"labels of shape {tuple(labels.shape)} need one row of logits each; the model returned {got}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be whole numbers, the class or token of each position; got {labels.dtype}")
    y = labels.flatten().long()
    try:
        if isinstance(logits, Unscored):
            return logits.cross_entropy(y, IGNORE, label_smoothing, z_loss) / count
        x = logits.flatten(0, -2)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        total = F.cross_entropy(x, y, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing)
        if z_loss:
            total = total + z_loss * x.logsumexp(-1).square().masked_fill(y == IGNORE, 0.0).sum()
    except IndexError:
        bad = labels[(labels != IGNORE) & ((labels < 0) | (labels >= logits.shape[-1]))]
        raise ValueError(
            f"label {int(bad[0])} is outside the head's classes: 0 to {logits.shape[-1] - 1}, or {IGNORE}: not counted"
        ) from None
    return total / count
