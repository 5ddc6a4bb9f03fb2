"""Decoders of text with pictures in it. B rows, T tokens, N pictures of a row, L positions of each, E their width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anyformer.core import checks
from anyformer.core.flow import Flow
from anyformer.core.front import Entrance, FrontEnd, Input, Inputs
from anyformer.core.mixer import Mixer
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Norm
from anyformer.core.state import State
from anyformer.parts.attention.media import NOTHING, LastMedium, Media, Seen
from anyformer.parts.block import Block
from anyformer.parts.embeddings import Entry
from anyformer.parts.positions import RelativeBias
from anyformer.parts.resampler import Resampler
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.decoder import CausalLM

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeVar

    O = ParamSpec("O")
    T = TypeVar("T")

EXAMPLES = 2  # pictures of a row in examples
MASK = "image_attention_mask"


class Images(FrontEnd):
    """The pictures of each row as one sequence, L positions each.

    ```
    pixel_values (B, N, C, height, width) -> tower, each alone (B N, P, E) -> resampler (B N, L, E) -> (B, N L, E)
    ```

    Args:
        tower: a model of one picture, whose hidden states are read: `Encoder.of(...)`.
        resampler: makes P positions L; None: L = P.
    """

    main = "pixel_values"
    closed = True
    token: int | None = None  # that stands for a picture
    prefix, packed = "", False
    if TYPE_CHECKING:  # a type checker sees the signature of the constructor, which takes no width

        @classmethod
        def of(cls: Callable[O, T], *args: O.args, **options: O.kwargs) -> Recipe[T]: ...

    def __init__(self, tower: Recipe[Skeleton], resampler: Recipe[Resampler] | None = None):
        super().__init__()
        self.tower: Any = tower.build()
        self.resampler = None if resampler is None else resampler.build(tower["dim"])

    def inputs(self) -> dict[str, Input]:
        axes, fixed = ("images", "channels", "height", "width"), ("channels",)
        return {
            "pixel_values": Input(axes, fixed=fixed, required=False),
            "image_mask": Input(("images",), required=False, ids=True),
        }

    def reads(self) -> dict[str, Input]:
        """The same as `inputs`: what a medium reads, by its own names."""
        return self.inputs()

    def count(self, inputs: Inputs) -> int:
        """N, after checking shapes."""
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return 0
        front = self.tower.entrances()[0].front
        if pixels.ndim != 5:
            raise ValueError(
                f"pixel_values must be (batch, images, {front.channels}, height, width), got {tuple(pixels.shape)}"
            )
        front.length({"pixel_values": pixels.flatten(0, 1)})
        return pixels.shape[1]

    def length(self, inputs: Inputs) -> int:
        return self.count(inputs) * self.each(inputs)

    def each(self, inputs: Inputs) -> int:
        """L, or P where there is no resampler."""
        if self.resampler is not None:
            return self.resampler.latents.shape[0]
        pixels = inputs.get("pixel_values")
        return 0 if pixels is None else self.tower.entrances()[0].front.length({"pixel_values": pixels.flatten(0, 1)})

    def lengths(self, given: Inputs) -> list[int]:
        """The number of placeholders of each picture."""
        return [1] * len(given["pixel_values"])

    def arranged(self, given: Inputs, counts: Sequence[int]) -> dict[str, Tensor]:
        """Pictures one after another (M, C, height, width) by row, (B, N, C, height, width), with `image_mask` where
        rows have fewer than N. `counts`: of each row."""
        pixels, most = given["pixel_values"], max(counts)
        rows = [torch.cat((some, pixels.new_zeros(most - len(some), *some.shape[1:]))) for some in pixels.split(counts)]
        here = torch.arange(most, device=pixels.device) < torch.tensor(counts, device=pixels.device)[:, None]
        mask = {} if bool(here.all()) else {"image_mask": here.long()}
        return {"pixel_values": torch.stack(rows), **mask}

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        front = self.tower.entrances()[0].front
        size = size if len(size) > 1 else front.sizes()[0]  # that of the text, where both get one
        pixels = front.example(rows * EXAMPLES, size, noise)["pixel_values"]
        return {"pixel_values": pixels.unflatten(0, (rows, EXAMPLES))}

    def sizes(self) -> list[tuple[int, ...]]:
        return self.tower.entrances()[0].front.sizes()

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        pixels = inputs["pixel_values"]
        out = self.tower(pixel_values=pixels.flatten(0, 1))
        for name, value in out.aux.items():
            flow.add_aux(name, value)
        x = out.hidden if self.resampler is None else self.resampler(out.hidden, flow)  # (B N, L, E)
        return x.unflatten(0, pixels.shape[:2]).flatten(1, 2)


@dataclass(frozen=True)
class Text(Entrance):
    """The entrance of the text, with the picture that each token sees."""

    def inputs(self) -> dict[str, Input]:
        return {**super().inputs(), MASK: Input(("time", "images"), ("time",), required=False, ids=True)}


class Interleaved(CausalLM):
    """A decoder of text with pictures in it: gated blocks between those of a language model read the last picture
    before each token (Flamingo).

    ```
    pixel_values (B, N, C, height, width) -> images (B, N L, E)
                                                |  cross, gate 0 at first
    input_ids (B, T) -> embed ──> [gated -> block -> block …] x n ──> norm -> head -> logits (B, T, V)
    ```
    The pictures of a row stand where its tokens `placeholder` are, in this order. With a state, each call brings the
    pictures of its own tokens. All paths of the language model are those of `CausalLM`.

    Args:
        images: front-end of the pictures.
        gated: recipes of the blocks that read them, e.g. `Block.of(mixer=None, cross=MediaAttention.of(…), ffn=…,
            norm=…, scale=Gate.of())`: the first one stands in front of block 0, the next one `every` blocks later.
        every: see `gated`.
        placeholder: the token id that stands for a picture; None: a call with pictures needs `image_attention_mask`.
        dim, embed, blocks, norm, head, bias, context, entry: as in `CausalLM`.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        blocks: Any,
        norm: Recipe[Norm] | None,
        head: Recipe[Head] | None,
        images: Recipe[Images],
        gated: Sequence[Recipe[Block]],
        every: int = 1,
        placeholder: int | None = None,
        bias: Recipe[RelativeBias] | None = None,
        context: int | None = None,
        entry: Recipe[Entry] | Recipe[Mixer] | None = None,
    ):
        super().__init__(dim, embed, blocks, norm, head, bias, context, entry)
        if every < 1 or every * (len(gated) - 1) >= max(1, len(self.blocks)):
            raise ValueError(
                f"Interleaved: {len(self.blocks)} blocks have no room for {len(gated)} gated ones, every={every} apart"
            )
        if placeholder is not None and not 0 <= placeholder < (self.embed.vocab or 0):
            raise ValueError(f"Interleaved: placeholder={placeholder} is outside the {self.embed.vocab} token ids")
        self.images, self.every, self.placeholder = images.build(), every, placeholder
        self.gated = nn.ModuleList(block.build(dim) for block in gated)
        self.last = LastMedium()
        self.placeholders = frozenset(() if placeholder is None else (placeholder,))
        self.images.token = placeholder

    def entrances(self) -> tuple[Entrance, ...]:
        return Text(self.embed), Entrance(self.images)

    def medium(self, reads: str) -> Images:
        """The front-end that reads pictures."""
        return self.images

    def longest(self, entrance: Entrance) -> int | None:
        return None if entrance.front is self.images else self.context

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Examples say what each token sees, and have no placeholders: any other token can stand in their place."""
        ids, pixels = inputs.get("input_ids"), inputs.get("pixel_values")
        if ids is not None and self.placeholder is not None:
            ids = ids.masked_fill(ids == self.placeholder, 0 if self.placeholder else 1)
            inputs = {**inputs, "input_ids": ids}
        if ids is None or pixels is None or MASK in inputs:
            return inputs
        (B, T), N = ids.shape, pixels.shape[1]
        steps = torch.arange(T, device=ids.device) * (N + 1) // max(T, 1) - 1  # -1 …, 0 …, 1 …
        seen = (steps - torch.arange(B, device=ids.device)[:, None] % 2).clamp(min=NOTHING)  # (B, T)
        return {**inputs, MASK: (seen[..., None] == torch.arange(N, device=ids.device)).long()}

    def layers(self) -> Iterable[nn.Module]:
        for i, block in enumerate(self.blocks):
            if i % self.every == 0 and i // self.every < len(self.gated):
                yield self.gated[i // self.every]
            yield block

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        state: State | None = None,
        last: bool = False,
        document_ids: Tensor | None = None,
        **inputs: Tensor | None,
    ) -> Output:
        """Token ids (B, T), and the pictures at their placeholders, to an Output with logits (B, T, V).

        Args:
            attention_mask, position_ids, state, last, document_ids: as in `CausalLM`; documents cannot be packed.
            inputs: by name: `pixel_values` (B, N, C, height, width), the pictures of this call; `image_mask` (B, N),
                1 = a picture, where rows have fewer than N, the first ones; `image_attention_mask` (B, T, N), 1 = the
                picture that a token sees, of all so far. Without it, it follows from the placeholders.

        Raises:
            ValueError: naming the row, where pictures and placeholders differ in number, a token sees several
                pictures, or another one than the last before it.
        """
        named = self.check_inputs({"input_ids": input_ids, "attention_mask": attention_mask, **inputs})
        text, pictures = self.entrances()
        given = pictures.given(named)
        slot = None if state is None else state.slots.get(self.last)
        assert slot is None or isinstance(slot, Seen)
        each = self.images.each(given) or (0 if slot is None else slot.each)
        seen = self._seen(text.given(named), named, given, slot)
        tensors, flow = self.begin(text, named, position_ids, state, document_ids, causal=True)
        if slot is not None:
            slot.take(seen, self.images.count(given), each)
        flow.put(Media(self.images(given, flow) if self.images.count(given) else None, each, seen))
        x, flow = self.run(embed_inputs(self.embed, tensors, flow), flow)  # (B, T, D)
        logits = None if self.head is None else self.head(x[:, -1:] if last else x, flow)
        return Output(x, logits, aux=flow.aux, keep=flow.keep_now(x.shape[1]), figures=flow.figures)

    def _seen(self, text: Inputs, named: Inputs, given: Inputs, slot: Seen | None) -> Tensor:
        """The number of the picture that each token of this call sees, (B, T), checked."""
        T, ids, mask = self.embed.length(text), text["input_ids"], named.get(MASK)
        begins = torch.zeros_like(ids, dtype=torch.bool) if self.placeholder is None else ids == self.placeholder
        keep = text.get("attention_mask")
        if (
            keep is not None and keep.ndim == 2 and keep.shape[1] >= T and keep.shape[0] == ids.shape[0]
        ):  # else `begin` refuses
            begins = begins & keep[:, -T:].bool()
        count = self.images.count(given)
        if mask is not None:
            return stated(mask, begins, self.last(begins, slot), count + (0 if slot is None else slot.arrivals.total))
        if self.placeholder is None and count:
            raise ValueError(f"this model has no token that stands for a picture: pass {MASK} beside pixel_values")
        check_counts(begins, pictures_of(given, count, ids.shape[0]), self.placeholder)
        return self.last(begins, slot)


def interleaved(
    text: Recipe[CausalLM],
    images: Recipe[Images],
    gated: Sequence[Recipe[Block]],
    every: int = 1,
    placeholder: int | None = None,
) -> Recipe[Interleaved]:
    """The recipe of any decoder with pictures in its text; see `Interleaved`. Weights of the decoder fit as they are.

    Raises:
        ValueError: for another kind of model than a `CausalLM`.
    """
    if text.part is not CausalLM:
        raise ValueError(f"pictures between the tokens need a decoder, a CausalLM; got a {text.part.__name__}")
    more: dict[str, Any] = {"images": images, "gated": gated, "every": every, "placeholder": placeholder}
    return Interleaved.of(**text.options, **more)


def pictures_of(given: Inputs, count: int, rows: int) -> Tensor | int:
    """The number of pictures in each row, (B,), or in all."""
    pixels, mask = given.get("pixel_values"), given.get("image_mask")
    if pixels is not None and pixels.shape[0] != rows:
        raise ValueError(f"pixel_values has pictures for {pixels.shape[0]} rows, and input_ids has {rows} rows")
    if mask is None:
        return count
    if mask.shape != (rows, count):
        raise ValueError(f"image_mask must be (batch, images) = ({rows}, {count}), got {tuple(mask.shape)}")
    mask = checks.flags("image_mask", mask)
    if checks.readable(mask) and bool((later := ~mask[:, :-1] & mask[:, 1:]).any()):
        row = int(later.any(1).nonzero()[0])
        raise ValueError(
            f"image_mask: row {row} has a gap; the pictures of a row come first, then the places left empty"
        )
    return mask.sum(1)


def check_counts(begins: Tensor, pictures: Tensor | int, placeholder: int | None) -> None:
    """Raises ValueError unless each row has a placeholder for each of its pictures."""
    if not checks.readable(begins):
        return
    places = begins.sum(1)  # (B,)
    for row in (places != pictures).nonzero()[:1, 0].tolist():
        have = pictures if isinstance(pictures, int) else int(pictures[row])
        raise ValueError(
            f"row {row} has {int(places[row])} placeholders for pictures (id {placeholder}) and {have} pictures in "
            "pixel_values; each picture needs one, and each placeholder a picture (image_mask marks empty places of "
            "rows with fewer pictures)"
        )


def stated(mask: Tensor, begins: Tensor, last: Tensor, total: int) -> Tensor:
    """The pictures that tokens see by `image_attention_mask`, as numbers (B, T).

    Args:
        begins: (B, T) the placeholders. last: (B, T) the last picture before each token, by these.
        total: pictures so far.
    """
    if mask.shape != (*begins.shape, total):
        expected = (*begins.shape, total)
        raise ValueError(f"{MASK} must be (batch, tokens, pictures so far) = {expected}, got {tuple(mask.shape)}")
    mask = checks.flags(MASK, mask)
    seen = torch.where(mask.any(2), mask.long().argmax(2), NOTHING) if total else torch.full_like(last, NOTHING)
    if not checks.readable(mask):
        return seen
    for row, at in (mask.sum(2) > 1).nonzero()[:1].tolist():
        raise ValueError(f"{MASK}: token {at} of row {row} sees {int(mask[row, at].sum())} pictures; it can see one")
    other = (seen != NOTHING) & (seen != last) & begins.any(1, keepdim=True)
    for row, at in other.nonzero()[:1].tolist():
        before = "none" if last[row, at] == NOTHING else f"number {int(last[row, at])}"
        raise ValueError(
            f"{MASK}: token {at} of row {row} sees picture {int(seen[row, at])}, and the last one before it is {before}"
        )
    return seen
