"""Parts of protein language models. B batch, T time, D width, L layers, H heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.flow import Companion, Flow
from anyformer.core.front import Inputs
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.core.taps import Taps
from anyformer.parts.embeddings import Tokens
from anyformer.parts.heads import Kept
from anyformer.parts.positions import Rotary

HIDDEN = 0.15 * 0.8  # share of tokens that training replaces by the mask token


@dataclass(frozen=True)
class Frequencies(Companion):
    """The frequencies of rotary positions, (K/2,), as a file stores them."""

    left_by: ClassVar[str] = "ProteinTokens or ConformerEntry"
    values: Tensor


class ProteinTokens(Tokens):
    """`Tokens` of ESM-2 (Lin et al., 2022): masked tokens are dropped inputs; files store the turns of positions.

    x = tokens[id] (1 - h) / (1 - m), and 0 for the mask token. m is the share of mask tokens among the real tokens of
    the sequence, h = 0.12 that of training. A sequence of nothing but mask tokens is 0.

    Args:
        head_dim: K, the width of a head.
        theta: base of the frequencies of a new model.
        hidden: id of the mask token; None: it is a token like others.
        norm: over the vectors, or None.

    Shape: (B, T) -> (B, T, D). Leaves `Frequencies` in the flow.
    """

    def __init__(
        self,
        dim: int,
        vocab: int,
        head_dim: int,
        theta: float = 10000.0,
        hidden: int | None = None,
        norm: Recipe[Norm] | None = None,
    ):
        super().__init__(dim, vocab, norm=norm)
        if hidden is not None and not 0 <= hidden < vocab:
            raise ValueError(f"the id of the mask token, {hidden}, is outside the vocabulary of {vocab}")
        self.hidden, self.head_dim, self.theta = hidden, head_dim, theta
        self.register_buffer("frequencies", torch.empty(head_dim // 2))
        self.reset_parameters()

    frequencies: Tensor

    def reset_parameters(self) -> None:
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device="cpu")  # on "meta" it imports a compiler
        self.frequencies.copy_(1.0 / self.theta ** (steps / self.head_dim))

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        flow.put(Frequencies(self.frequencies))
        return super().forward(inputs, flow)

    def vectors(self, ids: Tensor, flow: Flow) -> Tensor:
        x = super().vectors(ids, flow)
        if self.hidden is None:
            return x
        masked, keep = ids == self.hidden, flow.keep_now(ids.shape[1])
        real = torch.ones_like(masked) if keep is None else keep
        seen, whole = per_sequence(real & ~masked, flow), per_sequence(real, flow)
        scale = (1 - HIDDEN) * whole / seen.clamp(min=1)  # (B, 1) or (B, T)
        return x.masked_fill(masked[..., None], 0.0) * scale[..., None].to(x.dtype)


class StoredRotary(Rotary):
    """`Rotary` by the frequencies that the front-end stores: files of ESM-2 can hold them rounded to 16 bits."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self._key = ("stored", *self._key)  # its tables are not those of a `Rotary` in the same pass

    def angles(self, flow: Flow) -> tuple[Tensor, float]:
        frequencies = flow.get(Frequencies, "StoredRotary").values.float()
        return flow.positions[..., None, None].float() * frequencies, 1.0


def per_sequence(marks: Tensor, flow: Flow) -> Tensor:
    """The number of marked tokens of each row, (B, 1); with documents of each token's document, (B, T)."""
    if flow.documents is None:
        return marks.sum(1, keepdim=True)
    number = flow.documents + 1  # 0 = padding
    counts = number.new_zeros(number.shape[0], number.shape[1] + 1).scatter_add_(1, number, marks.to(number.dtype))
    return counts.gather(1, number)


class ContactRegression(Part):
    """Logistic regression from attention maps to contacts: `contacts` applies it.

    Args:
        maps: L H, the number of maps.
    """

    def __init__(self, dim: int, maps: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(1, maps)), nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


def contacts(model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, end: int = 2) -> Tensor:
    """The probability that two residues touch (Rao et al., 2020), from the attention of all layers.

    A = attention + its transpose, without the first token and the end token; A_ij - A_i. A_.j / A_.. of each map is a
    feature of a logistic regression, whose weights are in the files of ESM-2.

    Args:
        input_ids: (B, T), each row a begin token, residues, an end token, padding.
        attention_mask: (B, T), 1 = a real token.
        end: id of the end token.

    Shape: (B, T - 2, T - 2); pairs with padding have no meaning.

    Raises:
        ValueError: for a model without that regression.
    """
    held = [m for m in model.modules() if isinstance(m, Kept) and m.held is ContactRegression]
    if len(held) != 1:
        raise ValueError(f"contacts need a model with one ContactRegression (the page esm); this one has {len(held)}")
    with torch.no_grad(), Taps(model, "blocks.*.mixer.weights") as taps:
        model(input_ids=input_ids, attention_mask=attention_mask)
        keep = input_ids != end if attention_mask is None else attention_mask.bool() & (input_ids != end)
        pairs = keep[:, None, :, None] & keep[:, None, None, :]
        maps = torch.cat([m for _, m in taps.items()], 1)  # (B, L H, T, T)
        maps = maps.masked_fill(~pairs, 0.0)[..., 1:-1, 1:-1]
        both = maps + maps.transpose(-1, -2)
        rows, columns = both.sum(-1, keepdim=True), both.sum(-2, keepdim=True)
        features = both - rows * columns / both.sum((-1, -2), keepdim=True)
        return torch.sigmoid(torch.einsum("bcij,c->bij", features, held[0].weight[0]) + held[0].get_buffer("bias"))
