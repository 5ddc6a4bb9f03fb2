"""Relevance of a passage to a sentence that a model wrote: by how much the passage alone makes the sentence likelier.

```
r(n) = log p(sentence | question, passage n, text before) - log p(sentence | question, text before)        in nats
```
It is the model's own view, which the words of both do not show: of two passages that say a sentence, one may be what it
was written from. S tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anyformer.generate.decoding import evaluating
from anyformer.hub.text.reading import reading


class Relevance:
    """The relevance of passages to the parts of a text.

    Args:
        model: that wrote the text. prompt: the conversation with the passages of some numbers, which the text answers.
    """

    def __init__(self, model: Any, prompt: Callable[[Sequence[int]], list[dict[str, str]]], text: str):
        self.model, self.prompt, self.text = model, prompt, text
        encoded = model.tokenizer.core.encode(text, add_special_tokens=False)
        self.ids, self.places = list(encoded.ids), list(encoded.offsets)
        self.known: dict[Sequence[int], Tensor] = {}

    def of(self, number: int, begin: int, end: int) -> float:
        """r of a passage for text[begin:end]."""
        inside = [i for i, (first, last) in enumerate(self.places) if first < end and last > begin]
        return float((self._logs((number,)) - self._logs(()))[inside].sum())

    def _logs(self, numbers: Sequence[int]) -> Tensor:
        """log p of each token of the text behind the conversation with these passages, (S,)."""
        if numbers not in self.known:
            with evaluating(self.model), torch.inference_mode():
                logs = self._logits(self.prompt(numbers)).double().log_softmax(-1)  # (S, V)
            self.known[numbers] = logs.gather(1, torch.tensor(self.ids, device=logs.device)[:, None])[:, 0]
        return self.known[numbers]

    def _logits(self, messages: list[dict[str, str]]) -> Tensor:
        model, device = self.model, next(self.model.parameters()).device
        if model.reads_source:
            source = reading(model.tokenizer, model.tokenizer.chat(messages), ends=True).ids
            given, start, _ = model.opening(torch.tensor([source], device=device), None)
            said = torch.cat((start, torch.tensor([self.ids[:-1]], dtype=torch.long, device=device)), 1)
            return model(**given, **{f"{model.target}input_ids": said}).logits[0]
        before = model.tokenizer.chat_ids(messages)
        read = torch.tensor([[*before, *self.ids[:-1]]], device=device)
        return model(input_ids=read).logits[0, len(before) - 1 :]
