"""Texts that follow a JSON schema, an expression or a grammar: only tokens that can still become one are left.

The grammar is walked by llguidance (`pip install 'anyformer[constrain]'`). JSON is written with one space behind `:`
and `,` and without line breaks. A text that ends because `max_new_tokens` is reached can be incomplete. V vocabulary.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from anyformer.generate.options import Options
from anyformer.generate.prompts import end_ids, tokenizer_of

LARGEST = 100_000  # characters of a schema or an expression
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_known: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()  # of a model: its tokenizer, and llguidance's


class Constraint:
    """The place of one text in its grammar.

    Args:
        begin: instead of a grammar, a text that it begins with; behind it all is allowed. None = the options' grammar.

    Raises:
        ValueError: for a grammar that makes no sense, or a model without a tokenizer or an end of texts.
    """

    def __init__(self, model: Any, options: Options, begin: str | None = None):
        guide = _guide()
        regex = guide.LLMatcher.grammar_from_regex
        grammar = grammar_of(options) if begin is None else regex(f"{re.escape(begin)}(?s:.*)")
        self.opens = begin is not None
        self.matcher, self.ends = guide.LLMatcher(_tokens(guide, model), grammar, log_level=0), end_ids(model)
        if self.matcher.is_error():
            name = next(n for n in ("schema", "regex", "grammar") if getattr(options, n) is not None)
            raise ValueError(f"{name}: {' '.join(self.matcher.get_error().split())[:300]}")

    def fork(self) -> Constraint:
        """The same place, from which another text goes on."""
        other = copy.copy(self)
        other.matcher = self.matcher.deep_copy()
        return other

    def allowed(self, scores: Tensor) -> Tensor:
        """Scores (V,) with minus infinity for tokens that lead out of the grammar."""
        if self.opens and self.matcher.is_accepting():
            return scores
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        keep = torch.from_numpy(np.unpackbits(bits, count=len(scores), bitorder="little").astype(bool))
        if self.matcher.is_error():
            raise ValueError(f"the grammar is too complex: {self.matcher.get_error()[:300]}")
        return scores.masked_fill(~keep.to(scores.device), float("-inf"))

    def accept(self, token: int) -> None:
        """Goes on behind a token; an end of the text stays."""
        if token >= 0 and token not in self.ends and not (self.opens and self.matcher.is_accepting()):
            self.matcher.consume_token(token)


def constraints(model: Any, options: Options, rows: int) -> list[Constraint]:
    """One for each row; none without a grammar or beginnings."""
    if any(options.begins):
        return [Constraint(model, options, begin) for begin in options.begins]
    asked = any(value is not None for value in (options.schema, options.regex, options.grammar))
    return [Constraint(model, options) for _ in range(rows)] if asked else []


def grammar_of(options: Options) -> str:
    """The grammar in llguidance's form.

    Raises:
        ValueError: for one that is too long.
    """
    guide = _guide()
    if options.schema is not None:
        text = json.dumps(options.schema)
        made = guide.LLMatcher.grammar_from_json_schema
    elif options.regex is not None:
        text, made = options.regex, guide.LLMatcher.grammar_from_regex
    else:
        text, made = options.grammar or "", guide.LLMatcher.grammar_from_lark
    if len(text) > LARGEST:
        raise ValueError(f"the grammar has {len(text):,} characters, at most {LARGEST:,}")
    return made(text, overrides=SPACING) if options.schema is not None else made(text)


def _tokens(guide: Any, model: Any) -> Any:
    """The model's tokens as llguidance reads them: made once."""
    tokenizer = tokenizer_of(model, "constrained texts")
    found = _known.get(model)
    if found is None or found[0] is not tokenizer:
        if not (ends := sorted(end_ids(model))):
            raise ValueError("a constrained text needs a token that ends texts, and this model has none")
        found = (tokenizer, guide.LLTokenizer(tokenizer.core.to_str(), n_vocab=_size(model), eos_token=ends))
        _known[model] = found
    return found[1]


def _size(model: Any) -> int:
    return max(model.vocab, model.tokenizer.vocab_size)


def _guide() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ValueError("a schema or an expression needs `pip install 'anyformer[constrain]'`") from None
    return llguidance
