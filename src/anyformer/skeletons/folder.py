"""Models of protein structure. B batch, S rows of an alignment, L residues, D width, C width of pairs, N layers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.front import Entrance
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head
from anyformer.parts.folding.attention import Lines
from anyformer.parts.folding.front import Chain, Grown, PairSum, Protein, Rows
from anyformer.parts.folding.heads import Pairs
from anyformer.parts.folding.structure import Folded, StructureModule
from anyformer.parts.folding.trunk import Recycling, RelativePositions
from anyformer.skeletons.base import Output, Skeleton, embed_inputs


class Folder(Skeleton, Part):
    """Residues to atoms (AlphaFold 2, ESMFold).

    ```
    input_ids (B, L) ── embed ──┬─(+)── rows (B, S, L, D) ──┬── block x N ──┬── first row ── structure ── atoms
    places of pairs, `first` ──(+)──── pairs (B, L, L, C) ──┘               │                    │
                                └──────── recycling: the pass before ───────┴────────────────────┘
    ```
    `beside` holds `pair` (B, L, L, C), `frames` (B, L, N, 7), `raw_angles` and `angles` (B, L, N, 7, 2), `positions`
    (B, L, 14, 3): a quaternion and an origin of each layer; lengths in angstrom, in float32.

    Args:
        dim: D. `pair_dim`: C.
        embed: `Stem.of(...)` or `Alignment.of(...)`.
        blocks: `FoldingBlock.of(...)` or `EvoformerBlock.of(...)`.
        structure: `StructureModule.of(...)`.
        heads: name to recipe; the first one's output is `logits`.
        far: of `RelativePositions`.
        first: what pairs are before the first pass, beside their places, or None.
        passes: through blocks and structure; the last one alone learns.
        lines: rows of pairs that attention takes at a time, by default all; the numbers are the same.
    """

    lesson = (120, 2e-2)  # each pass reads what the one before says
    pairs: ClassVar[frozenset[str]] = frozenset({"beside.pair", "heads.distogram", "heads.ptm"})

    def __init__(
        self,
        dim: int,
        pair_dim: int,
        embed: Recipe[Protein],
        blocks: Any,
        structure: Recipe[StructureModule],
        heads: Mapping[str, Recipe[Head]],
        far: int = 32,
        first: Recipe[PairSum] | None = None,
        passes: int = 4,
        lines: int | None = None,
    ):
        super().__init__()
        if passes < 1 or (lines is not None and lines < 1):
            raise ValueError(f"Folder: passes and lines must be at least 1, got passes={passes}, lines={lines}")
        self.width, self.pair_dim, self.passes, self.lines = dim, pair_dim, passes, lines
        self.embed, self.positions = embed.build(dim), RelativePositions(pair_dim, far)
        self.first = None if first is None else first.build(pair_dim)
        self.recycling = Recycling(dim, pair_dim)
        self.blocks = nn.ModuleList(block.build(dim, pair_dim) for block in blocks)
        self.structure = structure.build(dim, pair_dim)
        self.heads = nn.ModuleDict({name: head.build(dim) for name, head in heads.items()})

    def entrances(self) -> tuple[Entrance, ...]:
        return (Entrance(self.embed),)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        recycles: int | None = None,
        **inputs: Tensor | None,
    ) -> Output:
        """Residues (B, L), numbers of `anyformer.parts.folding.residues.LETTERS`, to an Output.

        Args:
            attention_mask: (B, L), 1 or True = a real residue.
            position_ids: (L,) or (B, L), the number of each residue in its chain; a jump parts two chains.
            recycles: passes after the first one; None: `passes` of the model in all. 0 is one pass.
            inputs: the front-end's other inputs, by name (`model.inputs()`): `msa`.

        Raises:
            ValueError: for an input that no part reads, a residue outside the alphabet, or fewer than 0 recycles.
        """
        named = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        tensors, flow = self.begin(Entrance(self.embed), self.check_inputs(named), position_ids)
        if recycles is not None and (type(recycles) is not int or recycles < 0):
            raise ValueError(f"recycles is the number of passes after the first one, 0 or more; got {recycles!r}")
        if self.lines is not None:
            flow.put(Lines(self.lines))
        given = flow.clear(embed_inputs(self.embed, tensors, flow))  # (B, L, D)
        passes = self.passes if recycles is None else recycles + 1
        x, z, atoms = torch.zeros_like(given), self._pairs(given, flow), None
        start = z
        z = torch.zeros_like(z)
        for number in range(passes):
            with contextlib.nullcontext() if number == passes - 1 else torch.no_grad():
                x, z, folded = self.once(given, start, (x, z, atoms), flow)
                atoms = folded.positions
        flow.put(folded)
        flow.put(Pairs(z))
        heads = {name: head(x, flow) for name, head in self.heads.items()}
        beside = {name: getattr(folded, name) for name in ("frames", "raw_angles", "angles", "positions")}
        first = next(iter(heads.values()), None)
        return Output(x, first, heads, aux=flow.aux, keep=flow.keep, figures=flow.figures, beside={"pair": z, **beside})

    def once(
        self, given: Tensor, start: Tensor, last: tuple[Tensor, Tensor, Tensor | None], flow: Flow
    ) -> tuple[Tensor, Tensor, Folded]:
        """One pass: residues (B, L, D), pairs and structure from those of the last one."""
        more, pairs = self.recycling(*last)
        x, z = (given + more)[:, None], start + pairs + self.positions(flow, given.shape[1])
        rows = flow.find(Rows)
        if rows is not None and rows.others is not None:
            x = torch.cat((x, rows.others), 1)  # (B, S, L, D)
        for block in self.blocks:
            x, z = block(x, z, flow)
        flow.put(Grown(x))
        chain = flow.get(Chain, "Folder").ids
        return x[:, 0], z, self.structure(x[:, 0], z, flow, chain)

    def _pairs(self, given: Tensor, flow: Flow) -> Tensor:
        """Pairs before the first pass, (B, L, L, C)."""
        if self.first is not None:
            return self.first(flow)
        return given.new_zeros(()).expand(*given.shape[:2], given.shape[1], self.pair_dim)
