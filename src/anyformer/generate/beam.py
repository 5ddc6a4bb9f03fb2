"""Beam search: the likeliest text as a whole, not the likeliest token at each position.

P prompts that are not done, L beams of each, V vocabulary, N candidates.

```
        ┌────────────────────────────────────────────────────────────────┐
prompts ─ log-probabilities of the next token + those of each beam ──────┤   (P, L, V)
          the best N of each prompt ─┬─ end a text ── ended, the best num_beams
                                     └─ go on ─────── live, the best num_beams
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyformer.generate.decoding import Decoding, unfinite
from anyformer.generate.options import Options


class Hypothesis(NamedTuple):
    """A text that a search found. `score` is the sum of its tokens' log-probabilities; for one that has ended,
    with its end token, divided by (number of tokens)^length_penalty. `tokens` are without the end token."""

    score: float
    tokens: list[int]


Candidate = tuple[float, int, int]  # (sum, beam that it continues, token)


class Beams:
    """The beams of one prompt.

    Attributes:
        live: unfinished texts, best first. ended: the best finished ones, best first.
    """

    def __init__(self, options: Options, ends: set[int]):
        self.options, self.ends = options, ends
        self.live, self.ended = [Hypothesis(0.0, [])], list[Hypothesis]()

    def take(self, candidates: list[Candidate], count: int) -> list[int]:
        """Keeps the best candidates, which have `count` tokens each; returns the beams that they continue.

        A text can end only if it is among the best `num_beams` candidates, since a worse one would be dropped. At
        `max_new_tokens` every text ends.
        """
        width, last = self.options.num_beams, count == self.options.max_new_tokens
        live, parents = list[Hypothesis](), list[int]()
        for rank, (total, parent, token) in enumerate(candidates):
            before = self.live[parent].tokens
            if last or token in self.ends:
                tokens = before if token in self.ends else [*before, token]
                if rank < width:
                    self.ended.append(Hypothesis(total / count**self.options.length_penalty, tokens))
            elif len(live) < width:
                live.append(Hypothesis(total, [*before, token]))
                parents.append(parent)
        self.live = live
        self.ended = sorted(self.ended, key=lambda h: -h.score)[:width]
        return parents

    def done(self, count: int) -> bool:
        """True if no better text can follow; every text has `count` tokens by now."""
        options = self.options
        if not self.live:
            return True
        if len(self.ended) < options.num_beams:
            return False
        if options.early_stopping is True:
            return True
        # A sum only falls. Its divisor grows where length_penalty > 0: the longest text has the best possible score
        grows = options.early_stopping == "never" and options.length_penalty > 0
        bound = self.live[0].score / (options.max_new_tokens if grows else count) ** options.length_penalty
        return bound <= self.ended[-1].score


def search(
    model: Any, prompts: list[list[int]], options: Options, media: Mapping[str, Tensor] | None = None
) -> list[Hypothesis]:
    """The best text that a beam search finds for each prompt, as `searched`."""
    return [found[0] for found in searched(model, prompts, options, media)]


@torch.inference_mode()
def searched(
    model: Any, prompts: list[list[int]], options: Options, media: Mapping[str, Tensor] | None = None
) -> list[list[Hypothesis]]:
    """The texts that a beam search finds for each prompt (rows of token ids, checked), the best first; `media` as in
    `Decoding`.

    The prompts are read once; their beams share a batch, and rows of the cache are reordered with the beams.

    Raises:
        ValueError: if the model's scores are not finite, and as `Decoding`.
    """
    run = Decoding(model, prompts, options, media)
    every = [Beams(options, run.ends) for _ in prompts]
    beams, width = every if run.rows else [], (1 + len(run.ends)) * options.num_beams
    for count in range(1, options.max_new_tokens + 1):
        scores = run.ruled(run.scores().float().log_softmax(-1), count - 1)  # (P L, V)
        sums = torch.tensor([[h.score for h in b.live] for b in beams], device=scores.device)  # (P, L)
        totals = (sums[..., None] + scores.unflatten(0, sums.shape)).flatten(1)  # (P, L V)
        best, flat = totals.topk(min(width, totals.shape[1]))  # (P, N), best first
        if not bool(best[:, 0].isfinite().all()):
            raise ValueError(unfinite(count - 1))
        parents, tokens = flat // scores.shape[1], flat % scores.shape[1]
        rows = [
            list(zip(*row, strict=True)) for row in zip(*(t.tolist() for t in (best, parents, tokens)), strict=True)
        ]
        index = [[i * sums.shape[1] + p for p in b.take(rows[i], count)] for i, b in enumerate(beams)]
        left = [i for i, b in enumerate(beams) if not b.done(count)]
        if not left:
            break
        beams = [beams[i] for i in left]
        run.reorder([place for i in left for place in index[i]])
        run.append(torch.tensor([[h.tokens[-1]] for b in beams for h in b.live], device=scores.device))  # (P L, 1)
    return [b.ended or b.live[:1] for b in every]
