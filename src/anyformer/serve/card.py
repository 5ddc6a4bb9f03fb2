"""What a server says about its models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.data.sources import SOURCES
from anyformer.explain.attention import kinds
from anyformer.explain.facts import inspect
from anyformer.explain.tree import wrapped

FRONT = 4096  # bytes of a README in which its front matter is looked for


@dataclass(frozen=True)
class Served:
    """A model under the name by which requests call it.

    Attributes:
        verbs: the routes that it answers.
        card: what the page shows of it, as JSON.
    """

    name: str
    model: Any
    verbs: tuple[str, ...]
    card: dict[str, Any]


def served(names: list[str], places: list[Path | str], models: list[Any]) -> dict[str, Served]:
    """The models by the last part of their names; the same name twice gets a number."""
    made: dict[str, Served] = {}
    for given, place, model in zip(names, places, models, strict=True):
        plain = Path(given.rstrip("/")).name.removesuffix(".gguf")
        short = base = re.sub(r"[^\w.:-]", "-", plain)[:64] or "model"
        number = 2
        while short in made:
            short, number = f"{base}-{number}", number + 1
        made[short] = Served(short, model, verbs_of(model), card(given, place, model))
    return made


def verbs_of(model: Any) -> tuple[str, ...]:
    """The routes that a model answers.

    Raises:
        ValueError: if there are none.
    """
    text = model.tokenizer is not None
    sees = bool(model.placeholders) and "pixel_values" in model.inputs() and model.processor is not None
    asks = {
        "chat": model.generates and text and model.tokenizer.template is not None,
        "completions": model.generates and text,
        "embeddings": text and model.reads_text,
        "transcriptions": text and model.reads_source and model.takes == "input_features",
        "images": model.generates and text and sees,
        "tokenize": text,
        "attention": model.generates and text and attends(model),
        "explain": model.generates and text and "input_ids" in model.inputs(),
    }
    verbs = tuple(verb for verb, able in asks.items() if able)
    if set(verbs) <= {"tokenize", "attention", "explain"}:
        what = getattr(model, "page", None) or type(model).__name__
        why = f"it reads {', '.join(model.inputs())}" if text else "it has no tokenizer"
        raise ValueError(f"{what} cannot be served: {why}; a server answers texts about texts, pictures and sounds")
    return verbs


def attends(model: Any) -> bool:
    """True if the model has attention between tokens that can be shown."""
    return bool(kinds(model))


def card(name: str, place: Path | str, model: Any) -> dict[str, Any]:
    """The facts of a model for its readers."""
    facts = inspect(model)
    return {
        "architecture": facts.page or facts.skeleton,
        "parameters": facts.parameters,
        "parts": facts.parts,
        "context": facts.context,
        "bytes": sum(facts.weights.values()),
        "types": sorted(facts.weights),
        "state_bytes_per_token": None if facts.state is None else facts.state.token,
        "vocabulary": model.vocab,
        "licence": licence(name, place),
        "recipe": wrapped(facts.recipe, 88),
    }


def licence(name: str, place: Path | str) -> str | None:
    """The licence that the model's README names, or that of real weights of `anyformer ls`; None if unknown."""
    if name in SOURCES:
        return SOURCES[name].licence
    readme = Path(place) / "README.md"
    if not readme.is_file():
        return None
    with open(readme, "rb") as file:
        front = file.read(FRONT).decode("utf-8", "replace")
    found = re.search(r"^license:\s*([\w.+-]{1,64})\s*$", front, re.MULTILINE)
    return found[1] if found else None
