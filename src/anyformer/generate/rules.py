"""Rules that a model's files set for every text: tokens that are never written, first and last ones, repetitions.

B rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anyformer.hub.generation import RULES, check_rule, unmet

OUT = float("-inf")


def settings_of(model: Any) -> dict[str, Any]:
    """The generation settings of the model's files: generation_config.json, else the older config.json."""
    origin = model.origin or {}
    return origin["generation"] if "generation" in origin else origin.get("config", {})


class Rules:
    """The rules of one call of `generate`.

    Args:
        ends: the tokens that end a text.
        last: the most new tokens.

    Raises:
        ValueError: naming the key, if the files ask for something unsupported or senseless.
    """

    def __init__(self, model: Any, ends: set[int], last: int):
        settings = settings_of(model)
        for key, value in unmet(settings).items():
            raise ValueError(
                f"the model's files set {key}={value!r:.80}, which generate does not support; load(..., "
                f"ignore=[{key!r}]) ignores it"
            )
        rules = {key: settings[key] for key in RULES if settings.get(key) is not None}
        for key, value in rules.items():
            check_rule("generation", key, value)
        self.ends, self.last = sorted(ends), last
        bad = [row for row in rules.get("bad_words_ids", []) if row not in ([e] for e in ends)]
        never = {*rules.get("suppress_tokens", []), *(row[0] for row in bad if len(row) == 1)}
        self.never = sorted(never | model.placeholders)
        self.phrases = [row for row in bad if len(row) > 1]
        self.not_first = rules.get("begin_suppress_tokens", [])
        self.first, forced = rules.get("forced_bos_token_id"), rules.get("forced_eos_token_id", [])
        self.final = forced if isinstance(forced, list) else [forced]
        self.once, self.least = rules.get("no_repeat_ngram_size") or 0, rules.get("min_length") or 0
        self.least_new = rules.get("min_new_tokens") or 0
        self.any = any(
            (self.never, self.phrases, self.not_first, self.final, self.once, self.least, self.least_new)
        ) or (self.first is not None)

    def apply(self, scores: Tensor, rows: list[list[int]], count: int) -> Tensor:
        """Scores (B, V) of the next token, with forbidden tokens at minus infinity.

        Args:
            rows: all tokens of each row so far, those in front of the text included. count: the number of new ones.
        """
        if not self.any:
            return scores
        scores, vocab = scores.clone(), scores.shape[1]
        scores[:, [t for t in self.never if t < vocab]] = OUT
        if count == int(self.first is not None and bool(rows) and len(rows[0]) == count + 1):
            scores[:, [t for t in self.not_first if t < vocab]] = OUT
        for score, row in zip(scores, rows, strict=True):
            banned = [p[-1] for p in self.phrases if row[len(row) - len(p) + 1 :] == p[:-1] and len(row) >= len(p) - 1]
            banned += _repeats(row, self.once) if self.once else []
            banned += self.ends if len(row) < self.least or count < self.least_new else []
            score[[t for t in banned if t < vocab]] = OUT
            forced = [self.first] if self.first is not None and len(row) == 1 else []
            forced = self.final if self.final and count == self.last - 1 else forced
            if forced:
                score.fill_(OUT)
                score[forced] = 0.0
        return scores


def _repeats(row: list[int], size: int) -> list[int]:
    """The tokens that would complete an n-gram of `size` tokens that the row already has."""
    if len(row) < size:
        return []
    end = row[len(row) - size + 1 :]
    return [row[i + size - 1] for i in range(len(row) - size + 1) if row[i : i + size - 1] == end]


def begin_of(model: Any) -> int:
    """The decoder's start token, from the files."""
    start = settings_of(model).get("decoder_start_token_id")
    return model.begin_id if start is None else int(start)


def grown(rows: list[list[int]], tokens: Tensor) -> list[list[int]]:
    """The rows with one more token each; tokens (B,)."""
    return [[*row, token] for row, token in zip(rows, tokens.tolist(), strict=True)]
