"""Scores to tokens: greedy, or drawn. B rows, V vocabulary, N candidates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyformer.generate.options import Options

if TYPE_CHECKING:
    from anyformer.generate.constraining import Constraint


class Sampler:
    """Chooses the next token of every row, in this order:

    ```
    scores ─ penalties ─ logit_bias ─ grammar ─┬─ temperature 0: the highest
                                               └─ / temperature ─ top_k ─ top_p ─ min_p ─ typical_p ─ one draw
    ```
    - repetition_penalty r: the score s of a token that the row has already becomes s / r where s > 0, else s r
      (Keskar et al., 2019; arXiv:1909.05858).
    - presence_penalty p and frequency_penalty f: the score of a token that the new text has n > 0 times loses p + f n.
    - logit_bias: a number is added to the scores of these tokens.
    - top_k: the k highest stay (Fan et al., 2018; arXiv:1805.04833).
    - top_p: of the rest, the likeliest stay until their probabilities reach p (Holtzman et al., 2020;
        arXiv:1904.09751).
    - min_p: of the rest, those with at least p times the probability of the likeliest stay (Nguyen et al., 2024;
      arXiv:2407.01082).
    - typical_p: of the rest, those whose information -log q is nearest to the entropy of q stay, until their
      probabilities reach p (Meister et al., 2022; arXiv:2202.00666).

    A draw takes one number from the row's own generator: a row's tokens do not depend on the batch. Without a seed
    the generators start from PyTorch's global one.

    Args:
        rows: the tokens of each row so far.
        vocab: V.
        device: that of the model.
        grammars: of each row, or none.
    """

    def __init__(
        self,
        options: Options,
        rows: list[list[int]],
        vocab: int,
        device: torch.device,
        grammars: Sequence[Constraint] = (),
    ):
        self.grammars = list(grammars)
        self.options = options
        seeds = options.seeds(len(rows))
        self.draws = [_generator(seed) for seed in seeds] if options.temperature else []
        self.seen: Tensor | None = None
        if options.repetition_penalty is not None:
            self.seen = torch.zeros(len(rows), vocab, dtype=torch.bool, device=device)  # (B, V)
            for row, ids in zip(self.seen, rows, strict=True):
                row[ids] = True
        counting = options.presence_penalty or options.frequency_penalty
        self.counts = torch.zeros(len(rows), vocab, device=device) if counting else None  # (B, V) in the new text
        self.bias: Tensor | None = None
        if options.logit_bias:
            self.bias = torch.zeros(vocab, device=device)  # (V,)
            for token, bias in options.logit_bias.items():
                if token >= vocab:
                    raise ValueError(f"logit_bias: token {token} is outside the vocabulary: ids go to {vocab - 1}")
                self.bias[token] = bias

    def choose(self, scores: Tensor) -> Tensor:
        """Scores (B, V) to tokens (B,); -1 where the scores are not finite."""
        if self.seen is not None:
            penalty = self.options.repetition_penalty or 1.0
            scores = torch.where(self.seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)
        if self.counts is not None:
            o, counts = self.options, self.counts
            scores = scores - (o.presence_penalty or 0.0) * (counts > 0) - (o.frequency_penalty or 0.0) * counts
        scores = scores if self.bias is None else scores + self.bias
        if self.grammars:
            scores = torch.stack([g.allowed(row) for g, row in zip(self.grammars, scores, strict=True)])
        best, tokens = scores.max(-1)  # NaN counts as the highest
        if self.options.temperature:
            tokens = self._draw(scores)
        tokens = torch.where(best.isfinite(), tokens, -1)
        if self.seen is not None:
            self.seen.scatter_(1, tokens.clamp(min=0)[:, None], True)
        for grammar, token in zip(self.grammars, tokens.tolist() if self.grammars else (), strict=True):
            grammar.accept(token)
        if self.counts is not None:
            self.counts.scatter_add_(1, tokens.clamp(min=0)[:, None], torch.ones_like(self.counts[:, :1]))
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
            least = max(o.top_p, 1e-9)  # above 0 in float32 too: the first one stays
            p = p.masked_fill(p.cumsum(-1) - p >= least, 0.0)  # the tokens before reach p already
        if o.min_p is not None:
            p = p.masked_fill(p < o.min_p * p.amax(-1, keepdim=True), 0.0)
        if o.typical_p is not None and o.typical_p < 1:
            p = _typical(p, o.typical_p)
        return p, order

    def _draw(self, scores: Tensor) -> Tensor:
        p, order = self.candidates(scores)
        below = p.cumsum(-1, dtype=torch.float64)  # (B, N)
        draws = torch.cat([torch.rand(1, generator=g) for g in self.draws]).to(below)  # (B,) in [0, 1)
        place = torch.searchsorted(below, draws[:, None] * below[:, -1:], right=True)  # (B, 1), the first one above
        place = place.clamp(max=p.shape[1] - 1)  # scores that are no numbers have none; `choose` tells
        return (place if order is None else order.gather(1, place))[:, 0]

    def fork(self) -> Sampler:
        """A copy whose choices leave those of this one as they are: it draws the numbers that come next here."""
        other = copy.copy(self)
        other.draws = [draw.clone_state() for draw in self.draws]
        other.grammars = [grammar.fork() for grammar in self.grammars]
        other.seen, other.counts = (None if t is None else t.clone() for t in (self.seen, self.counts))
        return other

    def keep(self, index: list[int]) -> None:
        """Makes old row `index[i]` the new row i."""
        self.draws = [self.draws[i] for i in index] if self.draws else []
        self.grammars = [self.grammars[i] for i in index] if self.grammars else []
        self.seen, self.counts = (None if t is None else t[index] for t in (self.seen, self.counts))


def _typical(p: Tensor, mass: float) -> Tensor:
    """The candidates (B, N) whose information is nearest to the mean, until they have this probability together."""
    q = p / p.sum(-1, keepdim=True)
    entropy = torch.special.entr(q).sum(-1, keepdim=True)  # (B, 1)
    far = (-q.log() - entropy).abs()  # infinite where q is 0
    near, order = far.sort()
    count = (q.gather(1, order).cumsum(-1) < mass).sum(-1, keepdim=True).clamp(max=p.shape[1] - 1)
    return p.masked_fill(far > near.gather(1, count), 0.0)


def _generator(seed: int | None) -> torch.Generator:
    """A generator on the CPU, so that a seed means the same on every device."""
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    return torch.Generator().manual_seed(seed)
