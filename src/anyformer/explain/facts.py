"""The facts of a model: parameters, recipe, memory, tokenizer, module paths, and the summary of its ledger."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from anyformer.core import pages
from anyformer.explain.tree import parameters_by_part, tree

MANY = 1024  # tokens at which memory is given for a model without a longest text


@dataclass(frozen=True)
class StateFacts:
    """Memory of decoding one sequence, in bytes, in the dtype of the weights.

    Attributes:
        fixed: whatever the length (a recurrent state).
        token: for each token of the text, while all are kept (a window stops growing).
        source: for each token that an encoder reads, or 0.
        tokens: the context, or `MANY` without a limit. full: at that length.
    """

    fixed: int
    token: int
    source: int
    tokens: int
    full: int


@dataclass(frozen=True)
class Facts:
    """The result of `inspect`. Sizes are in bytes."""

    page: str | None
    skeleton: str
    context: int | None  # tokens; None = any
    parameters: int
    parts: dict[str, int]  # module path with `*` for the layers -> parameters
    weights: dict[str, int]  # dtype -> bytes, as the model is now
    weights_as: dict[str, int]  # bytes if all weights had that dtype
    state: StateFacts | None  # None: no decoding step by step
    config: dict[str, Any] | None  # hyperparameters of the page
    recipe: str
    tree: list[tuple[str, str]]  # module path, its class and shapes
    tokenizer: dict[str, Any] | None
    processor: str | None  # the processing of a picture, or of the steps of an episode
    noising: str | None  # how pictures become noise
    ledger: dict[str, Any] | None
    summary: str | None  # of the ledger

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, for machines."""
        return dataclasses.asdict(self)


def inspect(model: Any) -> Facts:
    """The facts of a model without running it; on the meta device too (`core.pages.empty`)."""
    weights: dict[str, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        name = str(tensor.dtype)[6:]
        weights[name] = weights.get(name, 0) + tensor.nbytes
    count = sum(p.numel() for p in model.parameters())
    sizes = {"float32": 4, "bfloat16": 2, "int8": 1}
    return Facts(
        page=model.page,
        skeleton=type(model).__name__,
        context=model.context,
        parameters=count,
        parts=parameters_by_part(model),
        weights=weights,
        weights_as={name: size * count for name, size in sizes.items()},
        state=state_facts(model),
        config=None if model.config is None else {name: _plain(v) for name, v in vars(model.config).items()},
        recipe=repr(model.recipe),
        tree=tree(model),
        tokenizer=None if model.tokenizer is None else _tokenizer(model.tokenizer, model),
        processor=None if model.processor is None else str(model.processor),
        noising=None if model.noising is None else str(model.noising),
        ledger=None if model.ledger is None else model.ledger.to_json(),
        summary=None if model.ledger is None else model.ledger.summary(),
    )


def state_facts(model: Any) -> StateFacts | None:
    """Memory of the decoding cache, counted on the meta device; None if the model does not decode step by step, or its
    memory depends on the text (segment recurrence, kNN memory)."""
    if not model.decodes:
        return None
    empty = pages.empty(model.recipe).to(next(model.parameters()).dtype)
    tokens = MANY if model.context is None else model.context
    try:
        none, one, two, full = (empty.start(1, n).bytes() for n in (0, 1, 2, tokens))
    except ValueError:  # a mixer has no cache, or none of this length
        return None
    if empty.reads_source:
        source = _reading(empty, 2) - _reading(empty, 1)
        return StateFacts(none, two - one, source, tokens, full + source * tokens)
    inputs = _example(empty, {"": (2,)})
    state = empty.start(1, empty.entrances()[0].front.length(inputs))
    begun = state.bytes()
    empty(**inputs, state=state)
    return StateFacts(none, two - one, 0, tokens, full) if state.bytes() == begun else None


def _reading(model: Any, count: int) -> int:
    """Bytes of the cache after a source of `count` tokens."""
    state = model.start(1, 1)
    model(**_example(model, {"": (count,), model.target: (1,)}), state=state)
    return state.bytes()


def _example(model: Any, sizes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The required inputs of the model on the meta device, in its type."""
    made, reads = model.example(1, sizes, torch.Generator()), model.inputs()
    like = next(model.parameters())
    return {n: v.to(like.device if reads[n].ids else like) for n, v in made.items() if reads[n].required}


def _tokenizer(tokenizer: Any, model: Any) -> dict[str, Any]:
    special = {role: f"{token} ({tokenizer.role_id(role)})" for role, token in tokenizer.roles.items()}
    return {
        "tokens": tokenizer.vocab_size,
        "rows": model.vocab,  # of the model's table; more rows than tokens are padding
        "special": special,
        "ends": sorted(tokenizer.eos_ids),
        "chat template": 0 if tokenizer.template is None else len(tokenizer.template),  # characters
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
