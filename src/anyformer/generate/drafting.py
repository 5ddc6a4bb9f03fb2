"""Guesses by a draft: a smaller model, or the model itself without every second block (self-speculation).

```
draft   last token ─> d1 ─> d2 ─> d3        one cheap pass each
model   last token,   d1,   d2,   d3        one pass for all; what is right stays, what is wrong leaves both states
```
The draft draws with the random numbers that the model will draw with, so that its guess is the model's token wherever
their distributions are alike (Leviathan et al., 2023, arXiv:2211.17192; without blocks: Zhang et al., 2023,
arXiv:2309.08168). What is wrong costs time, never the text.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.generate.decoding import Rows
from anyformer.generate.steering import Changed

FIRST, MOST = 4, 8  # tokens of the first guess, and at most


class Draft:
    """The guesses of a second model, whose state follows the text. V vocabulary of the model that verifies.

    Args:
        rows: one row: the prompt, as the draft reads it.
        vocab: V.

    Attributes:
        size: tokens of the next guess: one more behind a guess that was right, one fewer behind a wrong one.
    """

    def __init__(self, rows: Rows, vocab: int):
        self.rows, self.vocab, self.size = rows, vocab, FIRST
        self.behind: list[int] = []  # tokens of the text that the draft has not read
        self.guessed: list[int] = []
        self.place = 0  # length of the state in front of the guess

    def guess(self, count: int, choose: Callable[[Tensor, int], int]) -> list[int]:
        """The next tokens, at most `count`; `choose` makes a token of scores (1, V) and the number of tokens before."""
        state, model = self.rows.state, self.rows.model
        assert state is not None
        text = (state.length if self.rows.new is not None else self.rows.ids.shape[1]) + len(self.behind)
        count = min(count, self.size, count if model.context is None else model.context - text)
        if count < 1:
            return []
        device, new = self.rows.device, torch.tensor([self.behind], dtype=torch.long)
        if self.rows.new is None:
            self.rows.ids = torch.cat((self.rows.ids, new.to(device)), 1)
        else:
            self.rows.new = new.to(device)
        self.behind = []
        for i in range(count):
            scores = self.rows.scores()
            if i == 0:
                state.mark()
                self.place = state.length
            self.guessed.append(choose(fitted(scores, self.vocab), i))
            self.rows.new = torch.tensor([self.guessed[-1:]], device=device)
        return list(self.guessed)

    def add(self, tokens: Iterable[int]) -> None:
        """Appends tokens of the text; of a guess before, the state keeps what was right."""
        tokens = list(tokens)
        if self.guessed:
            right = next((i for i, (a, b) in enumerate(zip(self.guessed, tokens, strict=False)) if a != b), None)
            self.size = min(MOST, self.size + 1) if right is None else max(1, self.size - 1)
            read = min(len(self.guessed) - 1, len(tokens) if right is None else right)  # the last one was not read
            assert self.rows.state is not None
            try:
                self.rows.state.trim(self.place + read)
            except ValueError:  # a recurrent state returns to the mark
                self.rows.state.trim(self.place)
                read = 0
            tokens, self.guessed = tokens[read:], []
        self.behind += tokens


def drafted(model: Any, draft: Any, prompts: list[list[int]], room: int, media: Mapping[str, Tensor]) -> Draft:
    """The draft of one prompt; "layers" is the model without every second block.

    Raises:
        ValueError: naming what differs, for a draft that reads another vocabulary or other inputs.
    """
    if draft == "layers":
        model = getattr(model, "torch_model", model)
        plain = model.model if isinstance(model, Changed) else model  # a guess need not be steered
        return Draft(Rows(thinned(plain), prompts, room, True, media), model.vocab)
    check_draft(model, draft, media)
    return Draft(Rows(draft, prompts, room, True, media), model.vocab)


def check_draft(model: Any, draft: Any, media: Mapping[str, Tensor]) -> None:
    """Raises ValueError for a draft whose tokens or inputs are not those of the model."""
    if not getattr(draft, "generates", False):
        raise ValueError(f"draft: a {type(draft).__name__} writes no text; give a model that generates")
    if draft.reads_source != model.reads_source:
        kinds = ["an encoder-decoder" if m.reads_source else "a decoder" for m in (draft, model)]
        raise ValueError(f"draft: {kinds[0]} cannot guess for {kinds[1]}; give one of the same kind")
    theirs, ours = (None if m.tokenizer is None else m.tokenizer.core.get_vocab() for m in (draft, model))
    if theirs is not None and ours is not None:
        if theirs != ours:
            token = next((t for t, i in ours.items() if theirs.get(t) != i), None) or next(iter(theirs.keys() - ours))
            raise ValueError(
                f"draft: its vocabulary is another one: {token!r} is {theirs.get(token)} there and {ours.get(token)} "
                "here; give a model that was trained with the same tokenizer"
            )
    elif draft.vocab != model.vocab:
        raise ValueError(f"draft: it has {draft.vocab} tokens and the model {model.vocab}; give one of the same tokens")
    if unread := sorted(media.keys() - draft.inputs().keys()):
        raise ValueError(f"draft: it does not read {', '.join(unread)}; give a model that does, or speculate='lookup'")


def fitted(scores: Tensor, vocab: int) -> Tensor:
    """Scores (1, V) of a model whose table is padded to another size."""
    return F.pad(scores, (0, vocab - scores.shape[1]), value=float("-inf"))


def thinned(model: Any) -> Any:
    """The model without every second block between the first and the last of what writes; all else is shared with it.

    Raises:
        ValueError: for a model without a stack of at least four blocks that decodes.
    """
    inside = {m for module in model.decoding() for m in module.modules()} if hasattr(model, "decoding") else set()

    def copied(module: nn.Module) -> nn.Module:
        blocks = list(getattr(module, "blocks", ())) if hasattr(module, "layers") else []
        own = len(blocks) > 3 and inside.issuperset(blocks)
        children = {name: copied(child) for name, child in module.named_children()}
        if not own and all(children[name] is child for name, child in module.named_children()):
            return module
        thin = copy.copy(module)
        thin._modules = {**module._modules, **children}
        if own:
            thin._modules["blocks"] = nn.ModuleList(
                b for i, b in enumerate(blocks) if i % 2 == 0 or i + 1 == len(blocks)
            )
        return thin

    thin = copied(model)
    if thin is model:
        raise ValueError("speculate='layers' leaves out blocks, and no stack of this model that decodes has four")
    return thin
