"""Heads: outputs of the stream. B batch, T time, D width, V vocabulary."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from anyformer.core.flow import Companion, Flow
from anyformer.core.part import Part, built, call, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Norm, Pool
from anyformer.parts import unscored
from anyformer.parts.adaptive import AdaptiveNorm
from anyformer.parts.embeddings import Cells, Table, TokenIds, Tokens
from anyformer.parts.ffn import activation


@dataclass(frozen=True)
class Unembedding(Companion):
    """The token table of a front-end, transposed: `table(x)`, (B, T, D) -> (B, T, V)."""

    left_by: ClassVar[str] = "a front-end with a token table (Tokens)"
    table: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pooled(Companion):
    """The pooled vector of each row, (B, D)."""

    left_by: ClassVar[str] = "the pool of a skeleton (pool=First.of(), Mean.of() …)"
    vector: Tensor


class Logits(Head):
    """A score for each token of the vocabulary: logits = W (scale * x) + b + offset.

    Args:
        vocab: size of the vocabulary.
        tied: W is the token table itself; the head then has no matrix of its own.
        bias: add b.
        scale: T5 uses D^-1/2 with a tied table.
        offset: add a stored vector that is never trained, 0 at first (BART and Marian: final_logits_bias).

    Shape: (B, T, D) -> (B, T, V).
    """

    plain: ClassVar[bool] = True  # nothing happens to the scores behind W x + b + offset

    def __init__(
        self, dim: int, vocab: int, tied: bool = False, bias: bool = False, scale: float = 1.0, offset: bool = False
    ):
        super().__init__()
        self.scale, self.vocab = scale, vocab
        self.proj = None if tied else nn.Linear(dim, vocab, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocab)) if bias else None
        self.offset: Tensor | None
        self.register_buffer("offset", torch.zeros(1, vocab) if offset else None)  # (1, V), as in files

    def reset_parameters(self) -> None:
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        x = x if self.scale == 1.0 else x * self.scale
        in_pieces = self.plain and unscored.wanted(x[..., 0].numel(), self.vocab)
        if in_pieces and (plain := self.matrix(flow)) is not None:
            bias = self.bias if self.offset is None else self.offset[0] + (0.0 if self.bias is None else self.bias)
            return cast(Tensor, unscored.Unscored(x, plain, bias))  # for an objective, which asked for it
        logits = flow.get(Unembedding, "Logits with tied=True").table(x) if self.proj is None else self.proj(x)
        logits = logits if self.bias is None else logits + self.bias
        return logits if self.offset is None else logits + self.offset

    def matrix(self, flow: Flow) -> Tensor | None:
        """W, (V, D); None where the product is another one: below an adapter, or quantised."""
        module: Any = self.proj
        if module is None:
            product: Any = flow.get(Unembedding, "Logits with tied=True").table
            module = product.__self__.tokens if getattr(product, "__func__", None) is Tokens.unembed else None
        return module.weight if type(module) in (nn.Linear, Table) else None


class MaskedLM(Logits):
    """BERT's head for masked tokens: logits = W (scale * norm(act(dense(x)))) + b (Devlin et al., 2018;
    arXiv:1810.04805).

    Shape: (B, T, D) -> (B, T, V).
    """

    def __init__(
        self,
        dim: int,
        vocab: int,
        norm: Recipe[Norm],
        act: str = "gelu",
        tied: bool = True,
        bias: bool = True,
        scale: float = 1.0,
    ):
        super().__init__(dim, vocab, tied, bias, scale)
        self.dense, self.norm, self.act = nn.Linear(dim, dim), norm.build(dim), activation("MaskedLM", act)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return super().forward(self.norm(self.act(self.dense(x))), flow)


class First(Pool):
    """The vector of the first real token of each sequence (ViT's class token).

    Args:
        norm: over that vector only (CLIP), or None.

    Shape: (B, T, D) -> (B, D).
    """

    def __init__(self, dim: int, norm: Recipe[Norm] | None = None):
        super().__init__()
        self.norm = built(norm, dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if flow.keep is None:
            return call(self.norm, x[:, 0])
        first = flow.keep.int().argmax(1)  # (B,): padding can be on the left
        return call(self.norm, x[torch.arange(x.shape[0], device=x.device), first])


class At(Pool):
    """The vector of the end token of each sequence: the first one, if there are several (CLIP).

    Args:
        end: the id of that token; None: the token with the largest id, as in CLIP's first files.

    Raises:
        ValueError: for a row without it, whose vector would be another token's.

    Shape: (B, T, D) -> (B, D).
    """

    def __init__(self, dim: int, end: int | None = None):
        super().__init__()
        self.end = end

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        ids, keep = flow.get(TokenIds, "At").ids, flow.keep_now(x.shape[1])
        ends = ids + 1 if self.end is None else (ids == self.end).int()  # (B, T)
        ends = ends if keep is None else ends * keep
        if not torch.compiler.is_compiling() and not isinstance(ids, FakeTensor) and not ids.is_meta:
            read = True if keep is None else keep.any(1)  # no check of a row without tokens
            for row in ((ends.amax(1) == 0) & read).nonzero().flatten().tolist():
                raise ValueError(
                    f"row {row} of input_ids has no end token ({self.end}), whose vector stands for the text; the "
                    "tokenizer appends it; keep it when you cut a text"
                )
        return x[torch.arange(x.shape[0], device=x.device), ends.argmax(1)]

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        ids = inputs["input_ids"].clone()
        keep = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        ids[~keep] = int(self.end == 0)  # padding is no end, and not the largest id
        if self.end is not None:
            last = keep.shape[1] - 1 - keep.flip(1).int().argmax(1)
            ids[torch.arange(len(ids)), last] = self.end
        return {**inputs, "input_ids": ids}


class Mean(Pool):
    """The mean vector of the real tokens of each sequence; 0 if there are none. Shape: (B, T, D) -> (B, D)."""

    def __init__(self, dim: int):
        super().__init__()

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if flow.keep is None:
            return x.mean(1)
        return flow.clear(x).sum(1) / flow.keep.sum(1, keepdim=True).clamp(min=1)


class Pooler(First):
    """pooled = act(dense(first token)) (BERT), with dropout before (RoBERTa's classes). Shape: (B, T, D) -> (B, D)."""

    def __init__(self, dim: int, act: str = "tanh", dropout: float = 0.0):
        super().__init__(dim)
        self.dense, self.act, self.dropout = nn.Linear(dim, dim), activation("Pooler", act), dropout

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.act(self.dense(drop(self, super().forward(x, flow))))


class Classifier(Head):
    """A score per class, of the pooled vector or (`each`) of every token. Shape: (B, T, D) -> (B, classes) or
    (B, T, classes)."""

    def __init__(self, dim: int, classes: int, bias: bool = True, dropout: float = 0.0, each: bool = False):
        super().__init__()
        self.proj, self.dropout, self.each = nn.Linear(dim, classes, bias), dropout, each

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        source = x if self.each else flow.get(Pooled, "Classifier (each=False)").vector
        return self.proj(drop(self, source))


class Project(Head):
    """The pooled vector in another width, without bias: the common space of two towers (CLIP).

    Shape: (B, T, D) -> (B, width).
    """

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.proj = nn.Linear(dim, width, bias=False)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.proj(flow.get(Pooled, "Project").vector)


class Dense(Head, Pool):
    """norm(act(dense(x))): the input of ModernBERT's heads. Shape: (..., D) -> same."""

    def __init__(self, dim: int, norm: Recipe[Norm], act: str = "gelu", bias: bool = False):
        super().__init__()
        self.dense, self.norm, self.act = nn.Linear(dim, dim, bias), norm.build(dim), activation("Dense", act)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.norm(self.act(self.dense(x)))


class Unpatch(Head):
    """A picture of each patch's vector, side by side: the inverse of cutting a picture into patches.

    ```
    (B, T, D) ── norm ── linear ── (B, rows, columns, patch, patch, C) ── (B, C, rows patch, columns patch)
    ```
    Args:
        patch: height and width of a patch.
        channels: C.
        norm: of the stream, told about the row.

    Shape: (B, T, D), whose first T cells are a grid -> (B, C, height, width). The weights are 0 at first.
    """

    def __init__(self, dim: int, patch: int, channels: int, norm: Recipe[AdaptiveNorm]):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.norm = norm.build(dim)
        self.proj = nn.Linear(dim, patch * patch * channels)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        cells = flow.get(Cells, "Unpatch")
        p = self.patch
        pixels = self.proj(self.norm(x, flow)).unflatten(2, (p, p, self.channels))  # (B, T, p, p, C)
        grid = pixels.unflatten(1, (cells.rows, cells.columns))  # (B, rows, columns, p, p, C)
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class Through(Head, Pool):
    """A head or a pool in two steps: then(first(x)). Shape: that of `then`, after that of `first`."""

    def __init__(self, dim: int, first: Recipe[Head] | Recipe[Pool], then: Recipe[Head] | Recipe[Pool]):
        super().__init__()
        self.first, self.then = first.build(dim), then.build(dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.then(self.first(x, flow), flow)


class Kept(Head, Pool, Norm, also="Unread"):
    """A part in checkpoints that the model never uses: kept for round trips, not trained; returns x.

    Its tensors have the paths that they would have if the part itself were here. They are in modules without a kind:
    no adapter, tap or state reaches them.

    Args:
        held: the part, of any kind; None: a dense layer.

    Shape: any -> same.
    """

    weight: Tensor

    def __init__(self, dim: int, held: Recipe[Part] | None = None):
        super().__init__()
        self.dense, self.held = held is None, held and held.part
        if held is None:
            self.register_buffer("weight", torch.zeros(dim, dim))
            self.register_buffer("bias", torch.zeros(dim))
            return
        _hold(held.build(dim), self)

    def reset_parameters(self) -> None:
        if self.dense:  # the common rule for a layer
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


def _hold(part: nn.Module, holder: nn.Module) -> nn.Module:
    """The holder with all stored tensors of a part, as buffers: no optimizer sees them."""
    stored = part.state_dict(keep_vars=True)
    for name in [name for name in stored if "." not in name]:
        holder.register_buffer(name, stored[name].detach())
    for name, child in part.named_children():
        holder.add_module(name, _hold(child, nn.Module()))
    return holder
