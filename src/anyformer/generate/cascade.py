"""A cascade of three decoders, from a text to sound (MusicLM). B sounds, T frames, Q books, L ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.generate.decoding import evaluating
from anyformer.generate.options import Options
from anyformer.generate.prompts import tokenizer_of
from anyformer.generate.recoding import decode, processor_of
from anyformer.generate.sampling import Sampler
from anyformer.hub.text.reading import reading
from anyformer.media.sound import Sound
from anyformer.media.stages import SEGMENTS
from anyformer.parts.sound.pieces import Coded

CODEC = "codec"


@dataclass(frozen=True, eq=False)
class Cascade:
    """Three stages and a codec that fit each other.

    Attributes:
        semantic, coarse, fine: models of the page `musiclm`, each of its stage; the first has the tokenizer.
        codec: of the codes of coarse and fine books.
        semantic_rate: semantic codes a second.

    Raises:
        ValueError: naming what does not fit.
    """

    semantic: Any
    coarse: Any
    fine: Any
    codec: Any
    semantic_rate: float

    def __post_init__(self) -> None:
        layouts = {}
        for name in SEGMENTS:
            layout = getattr(getattr(self, name), "layout", None)
            if getattr(layout, "stage", None) != name:
                page = getattr(getattr(self, name), "page", None)
                raise ValueError(f"{name} must be a model of the page musiclm with stage={name}; got {page}")
            layouts[name] = layout
        for field in ("text", "semantic", "codes", "coarse", "fine"):
            values = {name: getattr(layout, field) for name, layout in layouts.items()}
            if len(set(values.values())) > 1:
                raise ValueError(f"the stages differ in {field}: {values}; what one writes must be what the next reads")
        check_codec(self.codec, layouts["fine"])
        if not self.semantic_rate > 0:
            raise ValueError(f"semantic_rate must be above 0, got {self.semantic_rate}")

    def frames(self, seconds: float) -> tuple[int, int]:
        """The semantic codes and the frames of the codec of so many seconds, at least one of each."""
        hop = self.codec.rate / self.codec.embed.hop
        return max(1, round(seconds * self.semantic_rate)), max(1, round(seconds * hop))


def check_codec(codec: Any, layout: Any) -> None:
    """Raises ValueError for a codec whose codes the stages do not say."""
    processor_of(codec)
    books, held = layout.coarse + layout.fine, len(codec.codes.books)
    if held < books or codec.codes.vocab != layout.codes:
        raise ValueError(
            f"the stages say {books} books of {layout.codes} codes, and the codec has {held} of {codec.codes.vocab}"
        )
    if codec.embed.piece is not None or codec.embed.normalise:
        raise ValueError("the codec keeps more than codes (pieces, or their loudness), which the stages do not say")


def is_cascade(folder: str | Path) -> bool:
    """True for a directory with a model for each stage."""
    return all((Path(folder) / name / "config.json").is_file() for name in (*SEGMENTS, CODEC))


def load_cascade(folder: str | Path, ignore: Any = ()) -> Cascade:
    """The cascade in a directory: semantic, coarse, fine and codec, each a model directory; semantic_rate.txt holds the
    semantic codes a second."""
    from anyformer.hub import load

    path = Path(folder)
    models = {name: load(path / name, ignore=ignore) for name in (*SEGMENTS, CODEC)}
    try:
        rate = float((path / "semantic_rate.txt").read_text())
    except (OSError, ValueError):
        raise ValueError(f"{path} needs a file semantic_rate.txt with the semantic codes a second, a number") from None
    return Cascade(**models, semantic_rate=rate)


def save_cascade(cascade: Cascade, folder: str | Path) -> None:
    """Writes a cascade for `load_cascade`."""
    for name in (*SEGMENTS, CODEC):
        getattr(cascade, name).save(Path(folder) / name)
    (Path(folder) / "semantic_rate.txt").write_text(f"{cascade.semantic_rate!r}\n")


def compose_stages(
    cascade: Cascade,
    text: str,
    *,
    seconds: float = 5.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Sound:
    """Music about a text, stage by stage.

    Raises:
        ValueError: naming the stage, for more seconds than its context holds; as `stage`.
    """
    first, frames = cascade.frames(seconds)
    tokens = reading(tokenizer_of(cascade.semantic, "texts"), text, ends=True).ids if text else []
    told = torch.tensor([tokens], dtype=torch.long)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    seeds = [None if seed is None else 3 * seed + number for number in range(3)]
    given = {"text": told}
    given["semantic"] = stage(cascade.semantic, given, first, seed=seeds[0], **options)
    coarse = stage(cascade.coarse, given, frames, seed=seeds[1], **options)
    fine = stage(cascade.fine, {"coarse": coarse}, frames, seed=seeds[2], **options)
    codes = torch.cat((coarse, fine), -1)
    return decode(cascade.codec, Coded(codes, torch.tensor([frames * cascade.codec.embed.hop]), None))


@torch.inference_mode()
def stage(
    model: Any,
    given: dict[str, Tensor],
    frames: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Tensor:
    """The codes that one stage writes after its segments: (B, T, Q), Q = 1 of semantic codes.

    Args:
        given: the segments that it reads: tokens of the text (B, S), codes of the others (B, T, Q).
        frames: T.
    """
    layout, device = model.layout, next(model.parameters()).device
    name = layout.segments[-1]
    row = torch.cat((layout.row(given), torch.full((len(next(iter(given.values()))), 1), layout.mark(name))), 1)
    count = frames * layout.books(name)
    if model.context is not None and row.shape[1] + count - 1 > model.context:
        raise ValueError(
            f"the stage {layout.stage} needs {row.shape[1]} ids before and {count} of its own, and its context is "
            f"{model.context}; give fewer seconds, or a shorter text"
        )
    sampler = Sampler(Options(0, temperature, top_k, top_p, None, None, (), seed, True), [[]] * len(row), 0, device)
    state, new, made = model.start(len(row), row.shape[1] + count), row.to(device), list[Tensor]()
    with evaluating(model):
        for place in range(count):
            first, behind = layout.allowed(name, place)
            scores = model(new, state=state, last=True).logits[:, -1, first:behind]
            new = sampler.choose(scores)[:, None] + first
            made.append(new)
    return layout.codes_of(name, torch.cat(made, 1)).cpu()
