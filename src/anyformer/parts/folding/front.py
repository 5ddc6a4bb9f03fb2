"""Front-ends of folding: residues through a protein language model, or with an alignment.

B batch, S rows of an alignment, L residues, D width, N layers of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anyformer.core import checks
from anyformer.core.flow import Companion, Flow
from anyformer.core.front import Entrance, FrontEnd, Input, Inputs
from anyformer.core.part import Part, drop
from anyformer.core.recipe import Recipe
from anyformer.parts.embeddings import Table
from anyformer.parts.folding.residues import LETTERS, UNKNOWN
from anyformer.parts.norms import LayerNorm

RESIDUES = len(LETTERS)  # 21 with X
ALPHABET = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")  # of ESM-2
BEGIN, PAD, END = (ALPHABET.index(t) for t in ("<cls>", "<pad>", "<eos>"))
GAP, HIDDEN, ABSENT = RESIDUES, RESIDUES + 1, -1  # in an alignment: a gap, a hidden residue, a cell of no row
CELLS = RESIDUES + 2  # 23 kinds of cells of an alignment


@dataclass(frozen=True)
class Chain(Companion):
    """The residues of each protein, (B, L), numbers of `LETTERS`."""

    left_by: ClassVar[str] = "a front-end of proteins (Stem, Alignment)"
    per_position: ClassVar[bool] = True
    ids: Tensor


@dataclass(frozen=True)
class Rows(Companion):
    """The rows of an alignment behind the first one, (B, S - 1, L, D) or None, and which of all are real, (B, S)."""

    left_by: ClassVar[str] = "the front-end Alignment"
    per_position: ClassVar[bool] = True
    others: Tensor | None = None
    keep: Tensor | None = None


@dataclass(frozen=True)
class Grown(Companion):
    """All rows behind the last block, (B, S, L, D)."""

    left_by: ClassVar[str] = "a Folder"
    per_position: ClassVar[bool] = True
    stream: Tensor


class Protein(FrontEnd):
    """Base of the front-ends of proteins: `input_ids` (B, L) are numbers of `LETTERS`, not ids of a tokenizer.

    Padding can stand on either side, not inside.
    """

    main, mask = "input_ids", "attention_mask"

    def inputs(self) -> dict[str, Input]:
        return {"input_ids": Input(("residues",), ("residues",), ids=True)}

    def length(self, inputs: Inputs) -> int:
        ids = inputs["input_ids"]
        if ids.ndim != 2:
            raise ValueError(f"input_ids must be (proteins, residues), got {tuple(ids.shape)}")
        return ids.shape[1]

    def skips_gaps(self) -> bool:
        return False

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        return {"input_ids": torch.randint(0, RESIDUES, (rows, size[0]), generator=noise)}

    def sizes(self) -> list[tuple[int, ...]]:
        return [(11,)]

    def residues(self, inputs: Inputs, flow: Flow) -> Tensor:
        """The checked residues, X at padding, left in the flow as `Chain`."""
        ids = inputs["input_ids"]
        keep = flow.keep_now(ids.shape[1])
        ids = ids if keep is None else ids.masked_fill(~keep, UNKNOWN)
        _check(ids, "input_ids", 0, RESIDUES, f"a residue: 0 to {UNKNOWN}, for {LETTERS}")
        flow.put(Chain(ids))
        return ids


def _check(ids: Tensor, name: str, least: int, count: int, what: str) -> None:
    if checks.readable(ids) and len(bad := ids[(ids < least) | (ids >= count)]):
        raise ValueError(
            f"{name} holds {int(bad[0])}, which is no number of {what}; anyformer.generate.fold makes them"
        )


class Stem(Protein):
    """Residues through a protein language model (ESMFold: Lin et al., 2022).

    ```
    residues ── <cls> … <eos> ── language model ── mix of all layers ── norm ── linear ── relu ── linear ──(+)── x
        └────────────────────────────────── table ────────────────────────────────────────────────────────┘
    ```
    The mix is by softmax of a number for each layer. The language model learns with the rest, unless it is frozen.

    Args:
        model: an Encoder, ESM-2 of the page esm.
        table: the residues have vectors of their own, too.

    Shape: (B, L) -> (B, L, D).
    """

    def __init__(self, dim: int, model: Recipe[Part], table: bool = True):
        super().__init__()
        self.model = model.build()
        made: Any = self.model
        layers, wide = len(made.blocks) + 1, made.width
        self.register_buffer("ids", torch.empty(RESIDUES + 1, dtype=torch.long))
        self.mix = nn.Parameter(torch.zeros(layers))
        self.norm = LayerNorm(wide)
        self.up, self.o = nn.Linear(wide, dim), nn.Linear(dim, dim)
        self.table = Table(RESIDUES + 2, dim) if table else None
        self.reset_parameters()

    ids: Tensor

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.mix)
        own = [PAD, *(ALPHABET.index(letter) for letter in LETTERS)]  # 0 is padding
        self.ids.copy_(torch.tensor(own, device="cpu"))

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        residues = self.residues(inputs, flow)
        states = self.states(residues, flow.keep_now(residues.shape[1]))  # (B, L, N + 1, E)
        x = torch.einsum("n,blne->ble", self.mix.softmax(0), states)
        x = self.o(torch.relu(self.up(self.norm(x))))
        return x if self.table is None else x + self.table(residues)

    def states(self, residues: Tensor, keep: Tensor | None) -> Tensor:
        """The hidden states of the language model at the residues, (B, L, N + 1, E): its tokens, each block's, the last
        one normed."""
        ids = self.ids[residues + 1]
        begin, end = (ids.new_full((ids.shape[0], 1), token) for token in (BEGIN, END))
        ids, mask = torch.cat((begin, ids, end), 1), None
        if keep is not None:  # <cls> and <eos> stand beside the residues, wherever the padding is
            none = torch.zeros_like(begin, dtype=torch.bool)
            inside = torch.cat((none, keep, none), 1)
            first, last = (torch.cat(side, 1) & ~inside for side in ((keep, none, none), (none, none, keep)))
            mask = inside | first | last
            ids = torch.where(inside, ids, PAD).masked_fill(first, BEGIN).masked_fill(last, END)
        named = {"input_ids": ids, "attention_mask": mask}
        model: Any = self.model
        tensors, flow = model.begin(Entrance(model.embed), {n: t for n, t in named.items() if t is not None})
        x = flow.clear(model.embed(tensors, flow))
        states = [x]
        for block in model.blocks:
            states.append(block(states[-1], flow))
        states[-1] = drop(model, model.norm(states[-1]))
        return torch.stack(states, 2)[:, 1:-1]


class PairSum(Part):
    """Pairs before the first pass: a vector of the first residue and one of the second (algorithm 3).

    Shape: `Chain` in the flow -> (B, L, L, C).
    """

    def __init__(self, dim: int):
        super().__init__()
        self.left, self.right = Table(RESIDUES, dim), Table(RESIDUES, dim)

    def forward(self, flow: Flow) -> Tensor:
        chain = flow.get(Chain, "PairSum").ids
        return self.left(chain)[:, :, None] + self.right(chain)[:, None]


class Alignment(Protein):
    """Residues and the rows of an alignment with them (AlphaFold 2; algorithm 3).

    ```
    row s   cell[s, i] + target[i]          the first row is the protein itself
    ```
    `msa` holds numbers of `LETTERS`, 21 for a gap, 22 for a hidden cell, and -1 in every cell of a row that is not
    there. Rows have no order. Insertions, profiles of clusters and templates are not read.

    Shape: (B, L) and (B, L, S - 1) -> (B, L, D), the first row; the others are left in the flow as `Rows`.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.cell, self.target = Table(CELLS, dim), Table(RESIDUES, dim)

    def inputs(self) -> dict[str, Input]:
        more = Input(("residues", "rows"), ("residues",), required=False, ids=True)
        return {**super().inputs(), "msa": more}

    def length(self, inputs: Inputs) -> int:
        count, msa = super().length(inputs), inputs.get("msa")
        if msa is not None and (msa.ndim != 3 or msa.shape[:2] != inputs["input_ids"].shape):
            raise ValueError(
                f"msa must be (proteins, residues, rows) = ({inputs['input_ids'].shape[0]}, {count}, …), a cell for "
                f"each residue in each row, got {tuple(msa.shape)}"
            )
        return count

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        msa = torch.randint(0, CELLS, (rows, size[0], 3), generator=noise)
        return {**super().example(rows, size, noise), "msa": msa}

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        residues = self.residues(inputs, flow)
        target, msa = self.target(residues), inputs.get("msa")
        keep, others = None, None
        if msa is not None:
            padding = flow.keep_now(residues.shape[1])
            msa = msa if padding is None else msa.masked_fill(~padding[..., None], GAP)
            real = msa != ABSENT if padding is None else (msa != ABSENT) & padding[..., None]
            msa = msa.masked_fill(msa == ABSENT, GAP)
            _check(msa, "msa", 0, CELLS, f"a cell: 0 to {UNKNOWN} for {LETTERS}, 21 for a gap, 22 for a hidden one")
            keep = torch.cat((torch.ones_like(real[:, 0, :1]), real.any(1)), 1)  # (B, S)
            others = self.cell(msa).transpose(1, 2) + target[:, None]  # (B, S - 1, L, D)
        flow.put(Rows(others, keep))
        return self.cell(residues) + target
