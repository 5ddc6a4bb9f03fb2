"""Models that several tests here use: every page that generates, at its tiny size, its variants, and a hybrid."""

from __future__ import annotations

import functools
import string
from typing import Any

import torch

import anyformer as af
from anyformer.core import pages
from anyformer.hub.text.tokenizer import Tokenizer
from tests.later import later

torch.set_num_threads(1)


@functools.cache
def names() -> list[str]:
    """page:case of everything that generates, and "hybrid"."""
    cases = [(p, case, p.module.CASES.get(case, {})) for p in af.pages() for case in ("", *p.module.CASES)]
    able = [
        f"{p.name}:{case}" for p, case, changes in cases if pages.empty(p.recipe(p.at("tiny", **changes))).generates
    ]
    return [*able, "hybrid:"]


def each_page() -> list[Any]:
    """The names, those of variants marked slow."""
    return [*(n for n in names() if n.endswith(":")), *later(*(n for n in names() if not n.endswith(":")))]


@functools.cache
def model(name: str) -> Any:
    """A model with weights large enough that its next token depends on all that it has read."""
    page, case = name.split(":")
    if page == "hybrid":
        made = af.build(
            af.recipe("llama", "tiny", depth=3).but({"blocks.2::3.mixer": af.parts.Mamba.of(state=4)}), seed=0
        )
    else:
        made = af.build(page, "tiny", seed=0, **(af.page(page).module.CASES[case] if case else {}))
    draw = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for path, weight in made.named_parameters():
            if weight.ndim > 1 and "A_log" not in path:
                weight.normal_(std=0.3, generator=draw)
    return made.eval()


def reading(tokens: int = 400, context: int = 256) -> Any:
    """A model of its own with a byte-level tokenizer; its text is any bytes, characters cut in the middle included."""
    made = af.build("gpt", "tiny", vocab=tokens, context=context, tied=False, seed=0)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    made.tokenizer = Tokenizer.train_bpe(
        [string.printable * 3, "the cat and the other cat — naïve 東京 🙂 " * 9], tokens
    )
    return made.eval()
