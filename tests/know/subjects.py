"""Encoders for tests: a small one that reads bytes, and the real MiniLM."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

import anyformer as af
from anyformer.data import sources
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.know import Encoder

torch.set_num_threads(1)


@functools.cache
def tiny(context: int = 64, seed: int = 0) -> Any:
    """A BERT of random weights whose tokens are bytes."""
    model = af.build("bert", "tiny", vocab=300, context=context, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3, generator=generator)
    model.tokenizer = Tokenizer.bytes_level()
    return model


def small(context: int = 64, seed: int = 0) -> Encoder:
    return Encoder(tiny(context, seed), "tiny")


@functools.cache
def minilm() -> Encoder:
    return Encoder(af.load(sources.get("minilm")), "minilm")


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
