"""Scores to tokens: greedy, or drawn. B rows, V vocabulary, N candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.generate.options import Options


class Sampler:
    """Chooses the next token of every row, in this order:

    ```
    scores ─ repetition_penalty ─┬─ temperature 0: the highest
                                 └─ / temperature ─ top_k ─ top_p ─ min_p ─ softmax ─ one draw
    ```
    - repetition_penalty r: the score s of a token that the row has already becomes s / r where s > 0, else s r
      (Keskar et al., 2019; arXiv:1909.05858).
    - top_k: the k highest stay (Fan et al., 2018; arXiv:1805.04833).
    - top_p: of the rest, the likeliest stay until their probabilities reach p (Holtzman et al., 2020;
        arXiv:1904.09751).
    - min_p: of the rest, those with at least p times the probability of the likeliest stay (Nguyen et al., 2024;
      arXiv:2407.01082).

    A draw takes one number from the row's own generator: a row's tokens do not depend on the batch. Without a seed
    the generators start from PyTorch's global one.

    Args:
        rows: the tokens of each row so far.
        vocab: V.
        device: that of the model.
    """

    def __init__(self, options: Options, rows: list[list[int]], vocab: int, device: torch.device):
        self.options = options
        seeds = options.seeds(len(rows))
        self.draws = [_generator(seed) for seed in seeds] if options.temperature else []
        self.seen: Tensor | None = None
        if options.repetition_penalty is not None:
            self.seen = torch.zeros(len(rows), vocab, dtype=torch.bool, device=device)  # (B, V)
            for row, ids in zip(self.seen, rows, strict=True):
                row[ids] = True

    def choose(self, scores: Tensor) -> Tensor:
        """Scores (B, V) to tokens (B,); -1 where the scores are not finite."""
        if self.seen is not None:
            penalty = self.options.repetition_penalty or 1.0
            scores = torch.where(self.seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)
        best, tokens = scores.max(-1)  # NaN counts as the highest
        if self.options.temperature:
            tokens = self._draw(scores)
        tokens = torch.where(best.isfinite(), tokens, -1)
        if self.seen is not None:
            self.seen.scatter_(1, tokens.clamp(min=0)[:, None], True)
        return tokens

    def candidates(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """The candidates of a draw, from scores (B, V) with the penalty.

        Returns:
            Probabilities (B, N), up to a factor, and their tokens (B, N), or None for all in the order of the
            vocabulary.
        """
        o, order = self.options, None
        scores = scores.float()
        scores = (scores - scores.amax(-1, keepdim=True)) / max(o.temperature, 1e-9)  # 0 at the best: nothing overflows
        if o.top_k is not None and o.top_k < scores.shape[1]:
            scores, order = scores.topk(o.top_k)  # (B, N), from the best down
        elif o.top_p is not None and o.top_p < 1:
            scores, order = scores.sort(descending=True)
        p = scores.softmax(-1)
        if o.top_p is not None and o.top_p < 1:
            p = p.masked_fill(p.cumsum(-1) - p >= o.top_p, 0.0)  # the tokens before reach p already
        if o.min_p is not None:
            p = p.masked_fill(p < o.min_p * p.amax(-1, keepdim=True), 0.0)
        return p, order

    def _draw(self, scores: Tensor) -> Tensor:
        p, order = self.candidates(scores)
        below = p.cumsum(-1, dtype=torch.float64)  # (B, N)
        draws = torch.cat([torch.rand(1, generator=g) for g in self.draws]).to(below)  # (B,) in [0, 1)
        place = torch.searchsorted(below, draws[:, None] * below[:, -1:], right=True)  # (B, 1), the first one above
        return (place if order is None else order.gather(1, place))[:, 0]

    def keep(self, index: list[int]) -> None:
        """Makes old row `index[i]` the new row i."""
        self.draws = [self.draws[i] for i in index] if self.draws else []
        self.seen = None if self.seen is None else self.seen[index]


def _generator(seed: int | None) -> torch.Generator:
    """A generator on the CPU, so that a seed means the same on every device."""
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    return torch.Generator().manual_seed(seed)
