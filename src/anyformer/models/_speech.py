"""What wav2vec 2.0, HuBERT and Conformer share: hyperparameters, the front-end, the heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head
from anyformer.parts import CTC, Context, Quantised, SoundClasses, Waves


@dataclass(frozen=True)
class Speech:
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    act: str = "gelu"
    eps: float = 1e-5
    widths: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)  # of the convolutions
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_norm: str = "group"  # after the first one, over time; layer: after each, over channels
    conv_bias: bool = False
    conv_act: str = "gelu"
    position_width: int = 128  # frames
    position_groups: int = 16
    hides: bool = True  # frames can be hidden
    task: str = "ctc"  # ctc, classify, none; pretrain of pages with codes; units of HuBERT
    vocab: int = 32
    blank: int = 0
    classes: int = 2
    class_width: int = 256
    dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    project_dropout: float = 0.0
    final_dropout: float = 0.0


@dataclass(frozen=True)
class Coded(Speech):
    groups: int = 2  # of codes
    codes: int = 320  # of a group
    code_width: int = 256
    out_width: int = 256  # in which guesses and codes are compared
    diversity: float = 0.1  # weight of its loss
    quantiser_dropout: float = 0.0


def waves(c: Speech, project_norm: bool = True) -> Recipe:
    """The front-end: seven convolutions, a norm, a projection."""
    convolutions = (c.widths, c.kernels, c.strides, c.conv_norm, c.conv_bias, c.conv_act, c.eps)
    return Waves.of(*convolutions, project_norm=project_norm, hides=c.hides, dropout=c.project_dropout)


def tops(c: Speech) -> dict[str, Mapping[str, Recipe[Head]]]:
    """The heads of each task."""
    made: dict[str, Mapping[str, Recipe[Head]]] = {
        "ctc": {"ctc": CTC.of(vocab=c.vocab, blank=c.blank, dropout=c.final_dropout)},
        "classify": {"classes": SoundClasses.of(classes=c.classes, width=c.class_width)},
        "none": {},
    }
    if isinstance(c, Coded):
        target = Quantised.of(
            c.widths[-1], c.groups, c.codes, c.code_width, c.out_width, c.diversity, c.quantiser_dropout
        )
        made["pretrain"] = {"context": Context.of(width=c.out_width), "target": target}
    return made
