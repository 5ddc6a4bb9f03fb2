"""Heads over frames of sound. B batch, T frames, D width, C width of frames, G groups, V codes or symbols."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.part import Part, drop
from anyformer.core.slots import Head
from anyformer.parts.heads import Mean
from anyformer.parts.sound.waves import Frames


class CTC(Head):
    """Scores of symbols for each frame, and of the blank: no symbol begins here (Graves et al., 2006, "Connectionist
    Temporal Classification").

    A path of frames is read by joining equal neighbours, then leaving out the blank: `a a - a b b` is `a a b`.

    Args:
        vocab: V, the blank among them. blank: its id.
        dropout: before the scores.

    Shape: (B, T, D) -> (B, T, V).
    """

    def __init__(self, dim: int, vocab: int, blank: int = 0, dropout: float = 0.0):
        super().__init__()
        if not 0 <= blank < vocab:
            raise ValueError(f"CTC: blank={blank} is the id of a symbol, from 0 to {vocab - 1}")
        self.proj, self.blank, self.dropout = nn.Linear(dim, vocab), blank, dropout

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.proj(drop(self, x))


class SoundClasses(Head):
    """A score per class: the mean over the real frames of a projection, then a linear layer.

    Args:
        width: of the projection.

    Shape: (B, T, D) -> (B, classes).
    """

    def __init__(self, dim: int, classes: int, width: int = 256):
        super().__init__()
        self.project, self.proj = nn.Linear(dim, width), nn.Linear(width, classes)
        self.pool = Mean(width)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.proj(self.pool(self.project(x), flow))


class Context(Head):
    """y = W x + b, with PyTorch's first weights: the guess of a frame's codes. Shape: (B, T, D) -> (B, T, width)."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.proj = nn.Linear(dim, width)

    def reset_parameters(self) -> None:
        self.proj.reset_parameters()

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.proj(x)


class Units(Head):
    """Scores of hidden units: cos(A x, e_c) / temperature (Hsu et al., 2021, "HuBERT"; arXiv:2106.07447).

    Args:
        codes: V, the clusters. width: of A x and of their vectors e_c.

    Shape: (B, T, D) -> (B, T, V).
    """

    def __init__(self, dim: int, codes: int = 500, width: int = 256, temperature: float = 0.1):
        super().__init__()
        if codes < 1 or not temperature > 0:
            raise ValueError(f"Units: codes={codes} is at least 1, and temperature={temperature} above 0")
        self.proj, self.vectors = nn.Linear(dim, width), nn.Parameter(torch.empty(codes, width))
        self.temperature = temperature
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.vectors)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return F.normalize(self.proj(x), dim=-1) @ F.normalize(self.vectors, dim=-1).mT / self.temperature


class Quantiser(Part):
    """Vectors of frames by product quantisation (Jegou et al., 2011): one of V codes in each of G groups, side by side.

    ```
    scores (B, T, G, V) = W x + b      training: one-hot sample of softmax((scores + gumbel) / temperature), with the
                                       gradient of the softmax (Jang et al., 2017; arXiv:1611.01144)
                                       else: the best code, with the same gradient
    ```
    Args:
        groups, codes: G, V. width: of all groups' vectors together.
        temperature: lowered in training by the paper from 2 to 0.5; published code holds it at 2.

    Shape: (B, T, C) -> vectors (B, T, width), shares (B, T, G, V) = softmax(scores).
    """

    def __init__(self, dim: int, groups: int = 2, codes: int = 320, width: int = 256, temperature: float = 2.0):
        super().__init__()
        if groups < 1 or codes < 1 or width % groups or not temperature > 0:
            raise ValueError(
                f"Quantiser: groups={groups} and codes={codes} are at least 1, groups divide width={width}, and "
                f"temperature={temperature} is above 0"
            )
        self.groups, self.codes, self.temperature = groups, codes, temperature
        self.scores = nn.Linear(dim, groups * codes)
        self.vectors = nn.Parameter(torch.empty(1, groups * codes, width // groups))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.scores.weight, std=1.0)
        nn.init.zeros_(self.scores.bias)
        nn.init.uniform_(self.vectors)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores(x).reshape(-1, self.codes).float()  # (B T G, V)
        shares = scores.softmax(-1)
        if self.training:
            chosen = F.gumbel_softmax(scores, self.temperature, hard=True)
        else:
            chosen = F.one_hot(scores.argmax(-1), self.codes) + (shares - shares.detach())
        each = chosen.to(x.dtype).unflatten(0, (-1, self.groups))  # (B T, G, V)
        table = self.vectors[0].unflatten(0, (self.groups, self.codes))  # (G, V, width / G)
        vectors = torch.einsum("ngv,gvw->ngw", each, table).reshape(*x.shape[:2], -1)
        return vectors, shares.reshape(*x.shape[:2], self.groups, self.codes)


class Quantised(Head):
    """The code vectors of the frames themselves, projected: what a hidden frame is to be recognised by.

    Training adds the auxiliary loss `diversity`, weight * (G V - perplexity) / (G V), with the perplexity of the mean
    softmax over the hidden real frames of the batch, summed over groups: a statistic of a batch, which accumulated
    batches have each for itself.

    Args:
        frames: C. groups, codes, width: see `Quantiser`. out: width of the projection.
        diversity: weight. dropout: of the frames.

    Shape: (B, T, D) -> (B, T, out).
    """

    def __init__(
        self, dim: int, frames: int, groups: int = 2, codes: int = 320, width: int = 256, out: int = 256,
        diversity: float = 0.1, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.quantiser, self.proj = Quantiser(frames, groups, codes, width), nn.Linear(width, out)
        self.diversity, self.dropout = diversity, dropout

    def reset_parameters(self) -> None:
        self.proj.reset_parameters()

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        frames = flow.get(Frames, "Quantised")
        vectors, shares = self.quantiser(drop(self, frames.values))
        if self.training:
            every = self.quantiser.groups * self.quantiser.codes
            spread = self.perplexity(shares, frames.hidden, flow.keep)
            flow.report("codes", spread)
            flow.add_aux("diversity", self.diversity * (every - spread) / every)
        return self.proj(vectors)

    def perplexity(self, shares: Tensor, hidden: Tensor | None, keep: Tensor | None) -> Tensor:
        """Codes in use: exp(entropy) of the mean shares over the hidden real frames, summed over groups."""
        counted = torch.ones(shares.shape[:2], dtype=torch.bool, device=shares.device) if hidden is None else hidden
        counted = counted if keep is None else counted & keep
        mean = shares.masked_fill(~counted[..., None, None], 0).sum((0, 1)) / counted.sum().clamp(min=1)  # (G, V)
        return torch.exp(-torch.special.xlogy(mean, mean).sum(-1)).sum()
