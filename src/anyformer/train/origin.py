"""Where the model to train comes from: an architecture, a recipe, or a model directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core import pages
from anyformer.core.recipe import Recipe, nearest
from anyformer.data.vocabulary import lines
from anyformer.hub import load
from anyformer.hub.guard import read_json
from anyformer.hub.tokenizer import Tokenizer
from anyformer.train import kinds

SIZE, VOCAB = "mini", 1024
HEADS = {"classify": "classify", "images": "classify", "tag": "tag"}  # task -> what pages with several heads call it


@dataclass(frozen=True)
class Origin:
    """A model that does not exist yet.

    Attributes:
        name: for a folder. `facts`: what says it, for people and for comparison when a run resumes.
        task: what it is trained on, see `kinds`.
        make: vocabulary, seed, number of classes -> the model with first weights; None if it is `given`.
        given: the model to start from.
    """

    name: str
    facts: dict[str, Any]
    task: str = "causal"
    make: Callable[[int, int, int], Any] | None = None
    given: Any = None

    def model(
        self, tokenizer: str | None, vocab: int | None, text: str | Iterable[str], seed: int, classes: int = 0
    ) -> Any:
        """The model with its tokenizer.

        Args:
            tokenizer: bpe, bytes, or a folder; None: the start model's own, else bpe.
            vocab: of a bpe, which is trained on `text`.
            classes: of the task, or 0.

        Raises:
            ValueError: for a tokenizer that there is not, or that knows more tokens than a start model.
        """
        if self.task == "images":
            return self.given if self.make is None else self.make(0, seed, classes)
        if vocab is not None and tokenizer not in (None, "bpe"):
            raise ValueError(f"vocab={vocab} is for the bpe that is made; tokenizer={tokenizer!r} has its own")
        if tokenizer is None and self.given is not None and self.given.tokenizer is not None:
            made = self.given.tokenizer
        else:
            made = _tokenizer(tokenizer or "bpe", VOCAB if vocab is None else vocab, text)
            made = kinds.equip(made, self.task) if tokenizer in (None, "bpe", "bytes") else made
        model = self.given if self.make is None else self.make(made.vocab_size, seed, classes)
        if made.vocab_size > model.embed.vocab:
            raise ValueError(
                f"the tokenizer has {made.vocab_size} tokens, the model knows {model.embed.vocab}; use the model's own"
            )
        model.tokenizer = made
        return model


def origin(model: str | Recipe, size: str | None, changes: dict[str, Any] | None, task: str | None = None) -> Origin:
    """Understands what `train` was given; see its `model`, `size`, `changes` and `task`.

    Raises:
        ValueError: for an architecture, size, hyperparameter or path that does not exist, with the nearest names, and
            for a task that it cannot be trained on.
    """
    changes = dict(changes or {})
    if isinstance(model, str) and model in pages.names():
        size = size or SIZE
        page = pages.page(model)
        kind = kinds.choose(task, model, page.recipe(page.at(size, **changes)), getattr(page.module, "TASK", None))
        if "vocab" in changes:
            raise ValueError("changes.vocab: the tokenizer decides how many tokens there are; give vocab instead")
        facts = {"model": model, "size": size, "changes": changes}
        return Origin(model, facts, kind, lambda *of: _built(page, size, changes, kind, *of))
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
        task = kinds.choose(task, model, given.recipe)
        return Origin(Path(model).stem, {"model": model, "size": "", "changes": changes}, task, given=given)
    recipe = Recipe.from_json(read_json(Path(model).expanduser())) if isinstance(model, str) else model
    recipe = recipe.but(changes)
    task = kinds.choose(task, "the recipe", recipe)
    facts = {"model": recipe.to_json(), "size": "", "changes": {}}

    def make(vocab: int, seed: int, classes: int) -> Any:
        sizes = {"vocab": vocab, "classes": classes} if classes else {"vocab": vocab}
        ends = {path: sizes.get(path.split(".")[-1]) for path, _ in recipe.walk()}
        return pages.build(recipe.but({path: value for path, value in ends.items() if value is not None}), seed=seed)

    return Origin("recipe", facts, task, make)


def _built(page: pages.Page, size: str, changes: dict[str, Any], task: str, vocab: int, seed: int, classes: int) -> Any:
    """A page's model for a task. What pages call the same means the same: `vocab`, `classes`, and `task`, which head a
    page gives that has several."""
    wanted: dict[str, Any] = {"vocab": vocab} | ({"classes": classes, "task": HEADS[task]} if classes else {})
    known = {f.name for f in dataclasses.fields(page.config)}
    return pages.build(page.name, size, seed=seed, **{n: v for n, v in wanted.items() if n in known} | changes)


def _tokenizer(kind: str, vocab: int, text: str | Iterable[str]) -> Tokenizer:
    if kind == "bytes":
        return Tokenizer.bytes_level()
    if kind == "bpe":
        return Tokenizer.train_bpe(lines([text] if isinstance(text, str) else text), vocab)
    if Tokenizer.exists(kind):
        return Tokenizer.load(kind)
    raise ValueError(f"tokenizer must be bpe, bytes, or a folder that holds one; got {kind!r}")
