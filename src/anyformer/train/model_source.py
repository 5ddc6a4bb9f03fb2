"""Source of the model to train: an architecture, a recipe, or a model directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core import hyper, pages
from anyformer.core.init import SCHEMES, initialise
from anyformer.core.part import check_option
from anyformer.core.recipe import Recipe
from anyformer.data import vocabulary
from anyformer.data.models import find
from anyformer.data.models import kind as kind_of
from anyformer.data.vocabulary import letters, lines
from anyformer.generate.paths import ctc_head
from anyformer.hub import load
from anyformer.hub.formats.guard import read_json
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.skeletons.painter import Painter
from anyformer.train.model_setup import with_processor, with_text
from anyformer.train.mup import Transfer
from anyformer.train.options import TrainOptions
from anyformer.train.tasks import registry

SIZE, VOCAB = "mini", 1024
MADE = ("bpe", "bytes")  # tokenizers that get the special tokens of a task


@dataclass(frozen=True)
class ModelSource:
    """Description of the model to train; it is built later.

    Attributes:
        name: for a folder. `facts`: for comparison when a run resumes.
        task: see `tasks.registry`.
        make: vocabulary, seed, number of classes, id of the mask token or None -> the model with first weights; None if
            it is `given`.
        recipe: vocabulary, number of classes, overrides -> its recipe; None if it is `given`.
        given: the model to start from.
    """

    name: str
    facts: dict[str, Any]
    task: str = "causal"
    make: Callable[[int, int, int, int | None], Any] | None = None
    recipe: Callable[[int, int, dict[str, Any]], Recipe] | None = None
    given: Any = None

    def model(
        self, tokenizer: str | None, vocab: int | None, text: str | Iterable[str] | None, seed: int, classes: int = 0
    ) -> Any:
        """The model with its tokenizer.

        Args:
            tokenizer: bpe, bytes, or a folder; None: the start model's own, else bpe.
            vocab: of a bpe, which is trained on `text`. text: None: the task has none, and the model no tokenizer.
            classes: of the task, or 0.

        Raises:
            ValueError: for a tokenizer that there is not, or that knows more tokens than a start model.
        """
        if not registry.KINDS[self.task].text or text is None:
            model = self.given if self.make is None else self.make(0, seed, classes, None)
            return with_processor(model) if registry.KINDS[self.task].media else model
        if vocab is not None and tokenizer not in (None, "bpe"):
            raise ValueError(f"vocab={vocab} is for a new bpe tokenizer; tokenizer={tokenizer!r} has its own")
        if tokenizer is None and self.given is not None and self.given.tokenizer is not None:
            made = self.given.tokenizer
        else:
            usual = "letters" if self.task == "ctc" else "bpe"
            made = _tokenizer(tokenizer or usual, VOCAB if vocab is None else vocab, text)
            made = registry.add_special_tokens(made, self.task) if (tokenizer or usual) in MADE else made
        mask = registry.hiding(made)[-1] if self.task == "masked" else None
        model = self.given if self.make is None else self.make(made.vocab_size, seed, classes, mask)
        if _beyond(made, model):
            raise ValueError(
                f"the tokenizer has {made.vocab_size} tokens, the model has {model.spelled}; use the model's own"
            )
        model.tokenizer = made
        return with_processor(model) if registry.KINDS[self.task].media else model


def model_source(
    model: str | Recipe,
    size: str | None,
    overrides: dict[str, Any] | None,
    task: str | None = None,
    ignore: Sequence[str] = (),
    checkpoint: Path | None = None,
) -> ModelSource:
    """The source of the model of `train`, see its options of the same names.

    Args:
        checkpoint: of a run that goes on: read in place of a model directory.

    Raises:
        ValueError: for a size or hyperparameter that does not exist, with the nearest names, and for a task that it
            cannot be trained on. FileNotFoundError: for a model that does not exist.
    """
    overrides = dict(overrides or {})
    what = kind_of(model) if isinstance(model, str) else "recipe"
    if isinstance(model, str) and what == "architecture":
        size = size or SIZE
        page = pages.page(model)
        kind = registry.choose(task, model, page.recipe(page.at(size, **overrides)), getattr(page.module, "TASK", None))
        if "vocab" in overrides and registry.KINDS[kind].text:
            raise ValueError("overrides.vocab: the tokenizer determines the number of tokens; set vocab instead")
        facts = {"model": model, "size": size, "overrides": overrides}

        def sized(vocab: int, classes: int, others: dict[str, Any]) -> Any:
            wanted: dict[str, Any] = {"vocab": vocab} if vocab else {}
            wanted |= {"classes": classes} if classes else {}
            head = registry.KINDS[kind].head
            wanted |= {"task": head} if head and (classes or kind == "contrast") else {}
            known = hyper.leaves(page.at(size))
            wanted |= {"token": vocab - 1} if kind == "caption" else {}  # the placeholder is the last one
            wanted = {leaf: wanted[leaf.rpartition(".")[2]] for leaf in known if leaf.rpartition(".")[2] in wanted}
            return page.at(size, **wanted | overrides | others)

        def make(vocab: int, seed: int, classes: int, mask: int | None) -> Any:
            others = {} if mask is None or "mask" not in hyper.leaves(page.at(size)) else {"mask": mask}
            whole = with_text(page.recipe(sized(vocab, classes, others)), vocab)
            if whole.part is Painter:
                return pages.build(whole, seed=seed)
            return pages.build(page.name, size, seed=seed, overrides=hyper.leaves(sized(vocab, classes, others)))

        return ModelSource(model, facts, kind, make, lambda *of: with_text(page.recipe(sized(*of)), of[0]))
    place = find(model) if isinstance(model, str) and what != "recipe" else Path()
    if size is not None:
        raise ValueError(f"size={size!r} is for an architecture; {str(model)[:60]!r} is not one")
    if isinstance(model, str) and what != "recipe":
        start = load(place, ignore=ignore, **overrides) if checkpoint is None else load(checkpoint)
        task = registry.choose(task, model, start.recipe)
        return ModelSource(Path(model).stem, {"model": model, "size": "", "overrides": overrides}, task, given=start)
    recipe = Recipe.from_json(read_json(Path(model).expanduser())) if isinstance(model, str) else model
    recipe = recipe.but(overrides)
    task = registry.choose(task, "the recipe", recipe)
    facts = {"model": recipe.to_json(), "size": "", "overrides": {}}

    def changed(vocab: int, classes: int, others: dict[str, Any]) -> Recipe:
        sizes = {name: count for name, count in (("vocab", vocab), ("classes", classes)) if count}
        ends = {path: sizes.get(path.split(".")[-1]) for path, _ in recipe.walk()}
        return recipe.but({path: value for path, value in ends.items() if value is not None}).but(others)

    return ModelSource("recipe", facts, task, lambda v, seed, c, _: pages.build(changed(v, c, {}), seed=seed), changed)


def pretrained(
    name: str, tokenizer: str | None = None, overrides: Mapping[str, Any] | None = None, ignore: Sequence[str] = ()
) -> Any:
    """The model to start from, with its tokenizer: real weights by name (`anyformer ls`), a folder, a file, a hub id.

    Raises:
        FileNotFoundError: if there is none. ValueError: for an architecture without weights, a model without a
            tokenizer, or a tokenizer that knows more tokens than the model.
    """
    model = load(find(name), ignore=ignore, **(overrides or {}))
    if model.vocab is None:
        if tokenizer is not None:
            raise ValueError(f"{name} reads {model.takes}, not text; leave tokenizer out")
        return model
    if tokenizer is not None:
        model.tokenizer = Tokenizer.load(tokenizer)
    if model.tokenizer is None:
        raise ValueError(
            f"{name} has no tokenizer, which examples of text need; set tokenizer to a folder that holds one"
        )
    if _beyond(model.tokenizer, model):
        raise ValueError(
            f"the tokenizer has {model.tokenizer.vocab_size} tokens, the model has {model.spelled}; they do not match"
        )
    return model


def _beyond(tokenizer: Tokenizer, model: Any) -> bool:
    """True if a tokenizer has tokens that the model has not; its placeholders are in no table."""
    head = ctc_head(model)
    count = model.spelled if head is None else head.proj.out_features
    return any(i not in model.placeholders for i in range(count, tokenizer.vocab_size))


def _tokenizer(kind: str, vocab: int, text: str | Iterable[str]) -> Tokenizer:
    if kind == "bytes":
        return Tokenizer.bytes_level()
    if kind == "letters":
        return letters([text] if isinstance(text, str) else text)
    if kind == "chars":
        return vocabulary.make([text] if isinstance(text, str) else text, "chars", 1 << 20)
    if kind == "bpe":
        return Tokenizer.train_bpe(lines([text] if isinstance(text, str) else text), vocab)
    if Tokenizer.exists(kind):
        return Tokenizer.load(kind)
    raise ValueError(f"tokenizer must be bpe, chars, bytes, or a folder that holds one; got {kind!r}")


def initialised(source: ModelSource, lm: Any, options: TrainOptions, new: bool) -> tuple[Any, dict[str, float]]:
    """The model with the first weights that `train`'s options init and base name, and factors of the learning rate.

    Args:
        new: the model has first weights; else it is a checkpoint's, and only muP's factors are wanted.

    Raises:
        ValueError: for options that contradict each other.
    """
    init, base, seed = options.init, options.base, options.seed
    check_option("train", "init", init, SCHEMES)
    if (init == "mup") != bool(base):
        raise ValueError(f"init=mup and base belong together; got init={init}, base={base}; e.g. --base.dim 64")
    if source.recipe is None and init != "depth":
        raise ValueError(f"init={init} is for a new model; this one is read from a directory with its own weights")
    if init != "mup":
        if new and init != "depth":
            initialise(lm, seed=seed, scheme=init)
        return lm, {}
    assert source.recipe is not None and base is not None
    sizes = dict(lm.recipe.walk())
    vocab = next((v for path, v in sizes.items() if path.endswith("vocab")), 0)
    classes = next((v for path, v in sizes.items() if path.endswith("classes")), 0)
    change = Transfer(source.recipe(vocab, classes, {}), source.recipe(vocab, classes, base))
    if not new:
        return lm, change.lr_multipliers
    made = change.build(seed)
    made.tokenizer, made.processor = lm.tokenizer, lm.processor
    return made, change.lr_multipliers
