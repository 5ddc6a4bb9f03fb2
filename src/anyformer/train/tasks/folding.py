"""The task fold: the atoms of proteins. B proteins, L residues."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from anyformer.data.batches import Batch
from anyformer.data.corpus import weights
from anyformer.data.labels import IGNORE
from anyformer.data.order import shuffled
from anyformer.media.proteins import Structure, read_alignment, read_pdb
from anyformer.parts.folding.front import ABSENT, GAP, HIDDEN
from anyformer.parts.folding.residues import LETTERS
from anyformer.train.folding import CA, WIDTH, Folding, lddt, rmsd, unpacked
from anyformer.train.options import FinetuneOptions, TrainOptions
from anyformer.train.tasks.base import Task
from anyformer.train.tasks.splits import Subset, one_in_ten

ENDINGS = (".pdb", ".ent")
UNIT = "(1 - lDDT)"
CROP = 256  # residues of a longer protein that are learned at a time
ROWS = 64  # of an alignment, behind the first one
SHARE = 0.15  # of its cells that are hidden
CLAMPED = 0.9  # of the proteins that are learned, the share whose FAPE is clamped
FEW = 10  # proteins: with fewer, none is held out
SHORTEST = 4  # residues with a backbone


class FoldData:
    """Chains of PDB files; of ten and more, one of each ten is held out."""

    implied: ClassVar[dict[str, Any]] = {}
    classes = 0
    longest = CROP

    def __init__(self, kind: str, options: TrainOptions | FinetuneOptions):
        if options.fields:
            raise ValueError("fields rename columns of tables; PDB files have none")
        sources = list(weights(options.data))
        if len(sources) > 1:
            raise ValueError(
                f"{kind} reads one folder of proteins, got {len(sources)}: {', '.join(sources)}; join them"
            )
        self.source, self.options = sources[0], options
        paths = {path: [c for c in read_pdb(path) if _known(c) >= SHORTEST] for path in files(self.source)}
        self.chains = [c for chains in paths.values() for c in chains]
        if not self.chains:
            raise ValueError(f"{self.source}: no chain has {SHORTEST} residues with N, CA and C")
        self.alignments = [alignment_of(path, c) for path, chains in paths.items() for c in chains]

    def words(self) -> tuple[str, ...]:
        """No text."""
        return ()

    def task(self, model: Any, context: int | None) -> Task:
        """The task for a model."""
        crop = CROP if context is None else context
        if crop < SHORTEST:
            raise ValueError(f"context={crop} residues; a protein is learned from at least {SHORTEST}")
        count = len(self.chains)
        notes: tuple[str, ...] = ()
        learn, out = _all(count), _all(count)
        if count >= FEW:
            learn, out = one_in_ten(self.source, count)
        else:
            notes = (f"{count} proteins: none is held out; the measure is of those that are learned",)
        reads = "msa" in model.inputs()
        aligned = tuple(self.alignments) if reads and any(a is not None for a in self.alignments) else ()
        if any(a is not None for a in self.alignments) and not reads:
            notes += ("the model reads no alignment: those beside the PDB files are left out",)
        rows = FoldRows(tuple(self.chains), learn, self.options.seed, crop, aligned)
        places = out.of(np.arange(out.size)).tolist()
        held_out, beside = [self.chains[i] for i in places], [aligned[i] for i in places] if aligned else []

        def measured(batch: int) -> Iterator[Batch]:
            for first in range(0, len(held_out), batch):
                yield batch_of(held_out[first : first + batch], aligned=beside[first : first + batch])

        digest = hashlib.sha256()
        for chain in self.chains:
            digest.update(chain.letters.encode() + chain.positions.tobytes())
        size = sum(len(chain.letters) for chain in self.chains)
        held = 0 if count < FEW else out.size
        summary = f"{learn.size:,} proteins, {held:,} held out, {size:,} residues"
        facts = {"task": "fold", "examples": digest.hexdigest()[:16], "crop": crop}
        return FoldTask(
            "fold", rows, measured, Folding(), None, UNIT, summary, facts, notes, size=learn.size,
            chains=tuple(held_out),
        )  # fmt: skip


def files(source: str) -> list[Path]:
    """The PDB files of a folder, or the one.

    Raises:
        FileNotFoundError, ValueError: if there is none.
    """
    place = Path(source).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; the task fold reads a PDB file, or a folder of them")
    found = sorted(p for p in place.rglob("*") if p.suffix.lower() in ENDINGS) if place.is_dir() else [place]
    if not found or found[0].suffix.lower() not in ENDINGS:
        raise ValueError(f"{place} holds no PDB file: expected {' or '.join(ENDINGS)}")
    return found


def first_protein(source: str) -> Path:
    """The first PDB file of a source."""
    return files(source)[0]


def _all(count: int) -> Subset:
    return Subset(count, lambda i: i)


def _known(chain: Structure) -> int:
    """The residues with a backbone."""
    return int(np.isfinite(chain.positions[:, :3]).all((1, 2)).sum())


def straight(chains: Sequence[Structure]) -> float:
    """1 - lDDT of a straight chain, over all these proteins: what a model has that knows nothing."""
    kept, pairs = 0.0, 0
    for chain in chains:
        _, true, there = unpacked(batch_of([chain])["labels"])
        mine = 3.8 * torch.arange(len(chain.letters))[None, :, None] * torch.tensor([1.0, 0.0, 0.0])
        own, all_ = lddt(mine, true[:, :, CA], there[..., :3].all(-1))
        kept, pairs = kept + float(own.sum()), pairs + int(all_.sum())
    return 1 - kept / max(1, pairs)


def batch_of(
    chains: Sequence[Structure],
    first: Sequence[int] = (),
    crop: int | None = None,
    aligned: Sequence[torch.Tensor | None] = (),
) -> Batch:
    """Inputs and labels (B, L, 44), padded on the right: see `train.folding.unpacked`."""
    cuts = [slice(f, None if crop is None else f + crop) for f in (first or [0] * len(chains))]
    lengths = [len(c.letters[cut]) for c, cut in zip(chains, cuts, strict=True)]
    ids = torch.zeros(len(chains), max(lengths), dtype=torch.long)
    places, labels = ids.clone(), torch.full((*ids.shape, WIDTH), float(IGNORE))
    for row, (chain, cut, count) in enumerate(zip(chains, cuts, lengths, strict=True)):
        ids[row, :count] = torch.tensor([LETTERS.index(letter) for letter in chain.letters[cut]])
        numbers = torch.from_numpy(chain.numbers[cut].astype(np.int64))
        places[row, :count] = (numbers - numbers[0]).cummax(0).values  # a gap of the file is a jump
        labels[row, :count, 0] = ids[row, :count].float()
        labels[row, :count, 1:-1] = torch.from_numpy(chain.positions[cut]).flatten(1)
        labels[row, :, -1] = 1  # FAPE is clamped
    keep = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    made = {"input_ids": ids, "position_ids": places, "attention_mask": keep, "labels": labels}
    if any(a is not None and a.shape[1] for a in aligned):
        made["msa"] = torch.full((*ids.shape, max(a.shape[1] for a in aligned if a is not None)), ABSENT)
        for row, (cells, cut, count) in enumerate(zip(aligned, cuts, lengths, strict=True)):
            if cells is not None:
                made["msa"][row, :count, : cells.shape[1]] = cells[cut]
    return made


def alignment_of(path: Path, chain: Structure) -> torch.Tensor | None:
    """The rows of the alignment beside a PDB file behind the first one, (L, S), or None: `1abc_A.a3m` of a chain, or
    `1abc.a3m` of the chain that its first row is; .sto, too.

    Raises:
        ValueError: if the alignment of a chain is another protein's.
    """
    for stem in (chain.name, path.stem):
        for ending in (".a3m", ".sto"):
            place = path.with_name(stem + ending)
            if not place.exists():
                continue
            first, *others = read_alignment(place)
            if first == chain.letters:
                cells = [[GAP if c == "-" else LETTERS.index(c) for c in row] for row in others[:ROWS]]
                return torch.tensor(cells, dtype=torch.long).reshape(len(cells), len(first)).T
            if stem == chain.name:
                raise ValueError(
                    f"{place}: the first row is not chain {chain.name}, whose residues are {chain.letters}"
                )
    return None


@dataclass(frozen=True, eq=False)
class FoldRows:
    """Proteins by number, each once in an epoch, see `data.order.Rows`; a long one is cut at a place that its number
    draws."""

    chains: tuple[Structure, ...]
    places: Subset
    seed: int
    crop: int
    aligned: tuple[torch.Tensor | None, ...] = ()

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        items = self.places.of(shuffled(first, count, self.places.size, self.seed)[1]).tolist()
        chains = [self.chains[i] for i in items]
        starts = []
        for number, chain in enumerate(chains, first):
            room = max(0, len(chain.letters) - self.crop)
            starts.append(int(np.random.default_rng((self.seed, number)).integers(room + 1)))
        batch = batch_of(chains, starts, self.crop, [self.aligned[i] for i in items] if self.aligned else ())
        draws = [np.random.default_rng((self.seed, number, 1)) for number in range(first, first + count)]
        batch["labels"][..., WIDTH - 1] = torch.tensor([float(draw.random() < CLAMPED) for draw in draws])[:, None]
        return hidden(batch, draws)


def hidden(batch: Batch, draws: Sequence[np.random.Generator]) -> Batch:
    """The batch with a share of the cells of its alignments hidden, and these cells behind its labels.

    Args:
        draws: one for each protein, of whose cells it decides, whatever the padding.
    """
    if "msa" not in batch:
        return batch
    cells, chosen = batch["msa"], torch.zeros_like(batch["msa"], dtype=torch.bool)
    for row, draw in enumerate(draws):
        there = cells[row] != ABSENT
        chosen[row][there] = torch.from_numpy(draw.random(int(there.sum())) < SHARE)
    wanted = cells.masked_fill(~chosen, IGNORE).float()
    labels = torch.cat((batch["labels"], wanted), -1)
    return {**batch, "msa": cells.masked_fill(chosen, HIDDEN), "labels": labels}


@dataclass(frozen=True, eq=False)
class FoldTask(Task):
    """The task fold, measured by lDDT of CA: distances that are kept, of all of the held-out proteins.

    Attributes:
        chains: the held-out proteins.
    """

    chains: tuple[Structure, ...] = ()

    def baseline(self, batch: int) -> float:
        """The measure of a straight chain."""
        return straight(self.chains)

    @torch.no_grad()
    def measure(self, model: Any, batch: int) -> float:
        """1 - lDDT, over all distances."""
        return 1 - self.scores(model, batch)[0]

    @torch.no_grad()
    def scores(self, model: Any, batch: int) -> tuple[float, list[float]]:
        """lDDT over all distances, and the RMSD of CA of each protein, in angstrom."""
        device, kept, pairs, off = next(model.parameters()).device, 0.0, 0, []
        for arrays in self.held_out(batch):
            inputs = {name: value.to(device) for name, value in arrays.items()}
            _, true, there = unpacked(inputs.pop("labels"))
            mine, keep = model(**inputs).beside["positions"][:, :, CA], there[..., :3].all(-1)
            own, all_ = lddt(mine, true[:, :, CA], keep)
            kept, pairs = kept + float(own.sum()), pairs + int(all_.sum())
            off += [float(rmsd(m, t, k)) for m, t, k in zip(mine, true[:, :, CA], keep, strict=True)]
        return kept / max(1, pairs), off
