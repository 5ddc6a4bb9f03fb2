"""Where the model to train comes from: an architecture, a recipe, or a model directory."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core import pages
from anyformer.core.recipe import Recipe, nearest
from anyformer.core.skeletons import CausalLM
from anyformer.hub import load
from anyformer.hub.guard import read_json
from anyformer.hub.tokenizer import Tokenizer

SIZE, VOCAB = "mini", 1024


@dataclass(frozen=True)
class Origin:
    """A model that does not exist yet.

    Attributes:
        name: for a folder. `facts`: what says it, for people and for comparison when a run resumes.
        make: vocabulary, seed -> the model with first weights; None if it is `given`.
        given: the model to start from.
    """

    name: str
    facts: dict[str, Any]
    make: Callable[[int, int], Any] | None = None
    given: Any = None

    def model(self, tokenizer: str | None, vocab: int | None, text: str, seed: int) -> Any:
        """The model with its tokenizer.

        Args:
            tokenizer: bpe, bytes, or a folder; None: the start model's own, else bpe.
            vocab: of a bpe, which is trained on `text`.

        Raises:
            ValueError: for a tokenizer that there is not, or that knows more tokens than a start model.
        """
        if vocab is not None and tokenizer not in (None, "bpe"):
            raise ValueError(f"vocab={vocab} is for the bpe that is made; tokenizer={tokenizer!r} has its own")
        if tokenizer is None and self.given is not None and self.given.tokenizer is not None:
            made = self.given.tokenizer
        else:
            made = _tokenizer(tokenizer or "bpe", VOCAB if vocab is None else vocab, text)
        model = self.given if self.make is None else self.make(made.vocab_size, seed)
        if made.vocab_size > model.embed.vocab:
            raise ValueError(
                f"the tokenizer has {made.vocab_size} tokens, the model knows {model.embed.vocab}; use the model's own"
            )
        model.tokenizer = made
        return model


def origin(model: str | Recipe, size: str | None, changes: dict[str, Any] | None) -> Origin:
    """Understands what `train` was given; see its `model`, `size` and `changes`.

    Raises:
        ValueError: for an architecture, size, hyperparameter or path that does not exist, with the nearest names, and
            for what is not a decoder of text.
    """
    changes = dict(changes or {})
    if isinstance(model, str) and model in pages.names():
        size = size or SIZE
        page = pages.page(model)
        _decoder(model, page.recipe(page.at(size, **changes)))
        if "vocab" in changes:
            raise ValueError("changes.vocab: the tokenizer decides how many tokens there are; give vocab instead")
        facts = {"model": model, "size": size, "changes": changes}
        return Origin(model, facts, lambda vocab, seed: pages.build(model, size, seed=seed, vocab=vocab, **changes))
    if isinstance(model, str) and not Path(model).expanduser().exists():
        known = pages.names()
        raise ValueError(
            f"no architecture, recipe file or model directory {model!r}{nearest(model, known)}; "
            f"architectures: {', '.join(known)}"
        )
    if size is not None:
        raise ValueError(f"size={size!r} is for an architecture, and {str(model)[:60]!r} is none")
    if isinstance(model, str) and not model.endswith(".json"):
        given = load(model, **changes)
        _decoder(model, given.recipe)
        return Origin(Path(model).stem, {"model": model, "size": "", "changes": changes}, given=given)
    recipe = Recipe.from_json(read_json(Path(model).expanduser())) if isinstance(model, str) else model
    recipe = recipe.but(changes)
    _decoder("the recipe", recipe)
    facts = {"model": recipe.to_json(), "size": "", "changes": {}}

    def make(vocab: int, seed: int) -> Any:
        return pages.build(recipe.but({"embed.vocab": vocab, "head.vocab": vocab}), seed=seed)

    return Origin("recipe", facts, make)


def _decoder(name: str, recipe: Recipe) -> None:
    if recipe.part is not CausalLM:
        raise ValueError(
            f"plain text is for a CausalLM, and {name} is of the kind {recipe.part.__name__}; with your own batches: "
            "anyformer.train.fit(model, batches, objective, settings, out)"
        )


def _tokenizer(kind: str, vocab: int, text: str) -> Tokenizer:
    if kind == "bytes":
        return Tokenizer.bytes_level()
    if kind == "bpe":
        lines = re.findall(r"[^\n]*\n+|[^\n]+", text)  # a list of lines is counted faster than one long text
        return Tokenizer.train_bpe(lines, vocab)
    if Tokenizer.exists(kind):
        return Tokenizer.load(kind)
    raise ValueError(f"tokenizer must be bpe, bytes, or a folder that holds one; got {kind!r}")
