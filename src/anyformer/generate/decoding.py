"""The decoding loop: a batch, continued token by token. B rows that are not done, T tokens so far, V vocabulary.

```
            ┌────────────────────────────────────────────┐
prompts ─ scores of the next token ─ sampler ─ tokens ───┴─> (row, token) … rows that are done leave the batch
            (first all tokens, then one)
```
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from anyformer.core.front import Inputs
from anyformer.core.state import State
from anyformer.generate.constraining import constraints
from anyformer.generate.options import Options
from anyformer.generate.prompts import check_room, end_ids
from anyformer.generate.rules import Rules, begin_of, grown
from anyformer.generate.sampling import Sampler


class Rows:
    """Texts in one batch, each a token longer after each `append`. A model in training mode reads as in eval mode.

    Shorter rows are padded on the left, with a padding mask, so a row's scores are those that it gets alone.

    Args:
        prompts: token ids of each row. A decoder continues them; an encoder-decoder reads them as the source, and
            continues its start token.
        room: the most new tokens of a row, for the memory that is reserved.
        cache: keep keys and values (or the recurrent state) between tokens.
        media: inputs of the media inside the prompts.

    Attributes:
        begins: the tokens in front of each new text, without placeholders of media.
    """

    def __init__(
        self,
        model: Any,
        prompts: list[list[int]],
        room: int,
        cache: bool | str,
        media: Mapping[str, Tensor] | None = None,
    ):
        self.model, self.device = model, next(model.parameters()).device
        ids, mask = padded(prompts, self.device)
        # the inputs of an encoder; (B, T) all tokens so far; (B, T) padding mask or None
        source, self.ids, self.mask = model.opening(ids, mask)
        self.source = {name: t for name, t in {**source, **(media or {})}.items() if t is not None}
        spans = model.inserts({"input_ids": ids, **media}) if media else {}
        self.owners = {name: entries[:, 0] for name, entries in spans.items()}  # the row of each medium
        if model.reads_source:
            self.ids = torch.full_like(self.ids, begin_of(model))
            prompts = self.ids.tolist()
        self.new: Tensor | None = None  # (B, 1) tokens that are not in the cache; None = all
        self.state: State | None = None
        if cache:
            with torch.inference_mode():
                self.state = model.start(len(prompts), self.ids.shape[1] + room)
            if cache == "int8":
                narrow(model, self.state)
        self.begins = [[token for token in row if token not in model.placeholders] for row in prompts]

    @torch.inference_mode()
    def reorder(self, rows: list[int]) -> None:
        """Makes old row `rows[i]` the new row i of the batch; the number of rows can change."""
        if rows == list(range(len(self.ids))):
            return
        index = torch.tensor(rows, device=self.device)
        self.ids = self.ids[index]
        self.mask, self.new = (None if t is None else t[index] for t in (self.mask, self.new))
        self.source, self.owners = rows_of(self.source, self.owners, index)
        if self.state is not None:
            self.state.reorder(index)

    @torch.inference_mode()
    def join(self, other: Rows) -> None:
        """Adds the rows of another batch, which is used up; both have a state with `joins`, and tokens to read."""
        assert self.state is not None and other.state is not None and self.new is not None and other.new is not None
        self.state.join(other.state, self.device)
        self.new = torch.cat((self.new, other.new))
        self.ids, self.mask, self.source, self.owners = self.new, None, {}, {}  # all is in the state

    @torch.inference_mode()
    def leave(self, rows: list[int]) -> None:
        """Keeps the rows `rows`, and of a state that can be joined only the positions that one of them has."""
        self.reorder(rows)
        if self.state is not None and self.state.joins:
            self.state.pack(self.device)

    def append(self, tokens: Tensor) -> None:
        """Appends the next token of each row, (B, 1)."""
        self.new = tokens  # (B, 1)
        if self.state is None:
            self.ids = torch.cat((self.ids, tokens), 1)
            self.mask = (
                None if self.mask is None else torch.cat((self.mask, torch.ones_like(tokens, dtype=torch.bool)), 1)
            )

    @property
    def unread(self) -> int:
        """The number of tokens of the prompts that `read` can read: 0 with a source, media, padding or no state."""
        plain = self.state is not None and self.new is None and self.mask is None and not self.source
        return self.ids.shape[1] - 1 - self.state.length if plain and self.state is not None else 0

    @torch.inference_mode()
    def read(self, count: int) -> Tensor:
        """The scores at the next `count` tokens of the prompts, at most `unread`, (B, T, V); they are in the state
        then."""
        assert self.state is not None
        first = self.state.length
        with evaluating(self.model):
            return self.model(self.ids[:, first : first + min(count, self.unread)], state=self.state).logits

    @torch.inference_mode()
    def scores(self) -> Tensor:
        """Scores of the next token, (B, V)."""
        first = self.new is None or self.state is None
        ids, mask = (self.ids, self.mask) if first else (self.new, None)
        if self.new is None and self.state is not None:
            ids = self.ids[:, self.state.length :]  # what `read` has not read
        prefix = self.model.target
        inputs = {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask, **(self.source if first else {})}
        with evaluating(self.model):
            return self.model(**inputs, state=self.state, last=True).logits[:, -1]


class Decoding(Rows):
    """Rows that are being continued with the same options. `while run.rows: for row, token in run.step(): …`

    A row's tokens are those that it gets alone.

    Args:
        prompts, media: as of `Rows`.

    Attributes:
        rows: the numbers of the rows that are not done, in the order of the batch.
    """

    def __init__(
        self, model: Any, prompts: list[list[int]], options: Options, media: Mapping[str, Tensor] | None = None
    ):
        check_room(model, prompts, options.max_new_tokens)
        super().__init__(model, prompts, options.max_new_tokens, options.max_new_tokens > 0 and options.cache, media)
        self.options, self.ends = options, end_ids(model)
        self.rows = list(range(len(prompts))) if options.max_new_tokens else []
        self.rules = Rules(model, self.ends, options.max_new_tokens)
        self.written = self.begins  # all tokens of each row so far, without padding
        self.sampler = Sampler(
            options, self.begins, model.vocab, self.device, constraints(model, options, len(self.rows))
        )
        self.count = 0

    @torch.inference_mode()
    def step(self) -> list[tuple[int, int]]:
        """The next token of every row that is not done: (row, token). A token that ends a text is not among them.

        Raises:
            ValueError: if the model's scores are not finite.
        """
        tokens = self.sampler.choose(self.ruled(self.scores()))  # (B,)
        chosen = list(zip(self.rows, tokens.tolist(), strict=True))
        if any(token < 0 for _, token in chosen):
            raise ValueError(unfinite(self.count))
        self.count += 1
        if self.count == self.options.max_new_tokens:
            self.rows = []
        else:
            self.append(tokens[:, None])
            self.finish([row for row, token in chosen if token in self.ends])
        return [(row, token) for row, token in chosen if token not in self.ends]

    def finish(self, rows: Collection[int]) -> None:
        """Takes these rows, which are done, out of the batch."""
        left = [i for i, row in enumerate(self.rows) if row not in rows]
        if len(left) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in left]
        if self.rows:
            self.reorder(left)

    def reorder(self, rows: list[int]) -> None:
        if rows == list(range(len(self.ids))):
            return
        self.sampler.keep(rows)
        self.written = [self.written[i] for i in rows]
        super().reorder(rows)

    def append(self, tokens: Tensor) -> None:
        if self.rules.any:
            self.written = grown(self.written, tokens[:, 0])
        super().append(tokens)

    def ruled(self, scores: Tensor, count: int | None = None) -> Tensor:
        """Scores (B, V), or log-probabilities, under the rules of the model's files, after `count` new tokens."""
        return self.rules.apply(scores, self.written, self.count if count is None else count)


def narrow(model: Any, state: State) -> None:
    """Makes a fresh state hold keys and values in 8 bits.

    Raises:
        ValueError: for a model that holds none, or whose steps another engine computes.
    """
    if hasattr(model, "torch_model"):
        raise ValueError("cache='int8' is PyTorch's: give engine='torch'")
    if not state.in_8_bits():
        raise ValueError("cache='int8' holds keys and values in 8 bits, and the state of this model has none")


def unfinite(count: int) -> str:
    """The message for scores of new token `count` that are no numbers."""
    return f"the scores for new token {count} are not finite (NaN or infinite); are the weights damaged?"


def rows_of(inputs: Inputs, owners: Mapping[str, Tensor], index: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs of the rows `index`, in that order, and their owners.

    Args:
        owners: the row of each entry, (N,), of inputs with an entry for each medium (`Skeleton.inserts`); such an input
            without entries is left out.
    """
    made, left = {}, {}
    for name, value in inputs.items():
        if name not in owners:
            made[name] = value[index]
            continue
        entry, row = (owners[name][:, None] == index).nonzero(as_tuple=True) if len(index) else (index, index)
        order = row.argsort(stable=True)
        if len(order):
            made[name], left[name] = value[entry[order]], row[order]
    return made, left


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A context with the model in eval mode; afterwards each module is back in its earlier mode."""
    training = [m for m in model.modules() if m.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows as ids (B, T), padded on the left with 0, and the mask (B, T), True = real; None where nothing is padded."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    if all(len(row) == width for row in rows):
        return ids, None
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths[:, None]
