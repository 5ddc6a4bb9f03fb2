"""A model made smaller and written, with what that cost measured on real text: the work of `anyformer compress`.

The written files are read again, and it is that model which is checked, compared and timed. A folder appears whole or
not at all: it is made beside its place and renamed at the end.
"""

from __future__ import annotations

import copy
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from anyformer import hub
from anyformer.compress import compare, few
from anyformer.compress.distil import Healed, check_pair, heal
from anyformer.compress.few import Method, Work
from anyformer.compress.held import Held, inputs_of
from anyformer.compress.prune import Cut, factor, prune
from anyformer.hub.formats import gptq
from anyformer.parts.embeddings import Table
from anyformer.parts.quantised import Grid, full

Form = Literal["folder", "gptq"]
FEW = 2  # batches on which the harm of one matrix is measured
FULL = 12  # bits a weight of a file, from which its weights are no rounded ones
BOUNDS = {8: 0.01, 4: 0.1, 3: 0.5}  # nats of divergence that each number of bits may cost


@dataclass(frozen=True)
class Wish:
    """The changes that are wanted of a model.

    Attributes:
        bits: 8, 4 or 3 of the matrices; None leaves their numbers as they are. Tables of tokens, and heads with a row
            for each, have 8 at least.
        method: see `compress.rounding`.
        group: inputs that share a scale and a zero.
        whole: zeros are whole numbers: the formats and kernels of others know no other ones.
        finer: the share by which the matrices may be larger than in `bits`: those that move the model most have 8.
        form: of the written directory: folder, our own; gptq, that of others, whose zeros are whole.
        prune: rules, see `compress.prune`, applied in their order.
        factor: rank of linear layers, or None.
        heal: steps of learning from the teacher, after pruning and before fewer bits.
        keep: path patterns of matrices that keep their numbers.
        max_kld: the largest divergence from the model before; by default `BOUNDS`, and none after pruning.
        coverage: the least share of the numbers of all matrices that must be in few bits.
    """

    bits: int | None = None
    method: Method = "rtn"
    group: int = 32
    prune: Sequence[str] = ()
    factor: int | None = None
    heal: int = 0
    keep: Sequence[str] = ()
    max_kld: float | None = None
    coverage: float | None = None
    whole: bool = False
    form: Form = "folder"
    finer: float = 0.0

    def check(self) -> None:
        """Raises ValueError for what cannot be wished for."""
        if self.bits is not None and self.bits not in BOUNDS:
            raise ValueError(f"bits must be one of {', '.join(map(str, BOUNDS))}, got {self.bits}")
        if self.bits is None and not self.prune and self.factor is None and not self.heal:
            raise ValueError("nothing was asked for: add --to int8, --prune, --factor, or --distil with --heal")
        if self.bits is None and self.coverage is not None:
            raise ValueError("--coverage is about matrices in few bits: add --to")
        if self.finer < 0 or (self.finer and (self.bits not in (3, 4) or self.form == "gptq")):
            raise ValueError(
                f"--finer is a share from 0, of 3 or 4 bits, not in GPTQ's layout of one; got {self.finer:g}"
            )
        if self.form == "gptq" and self.bits not in (4, 8):
            raise ValueError(f"GPTQ's layout has 4 or 8 bits, got {self.bits}: add --to int4 or int8")
        if (self.whole or self.form == "gptq") and self.method == "hqq":
            raise ValueError("hqq fits zeros that are not whole, which others need: use rtn, gptq or awq")
        if self.coverage is not None and not 0 < self.coverage <= 1:
            raise ValueError(f"coverage must be above 0 and at most 1, got {self.coverage}")
        if self.max_kld is not None and not self.max_kld >= 0:
            raise ValueError(f"max_kld must be at least 0, got {self.max_kld}")
        if self.heal < 0:
            raise ValueError(f"--heal is a number of steps, got {self.heal}")

    @property
    def bound(self) -> float:
        """The largest divergence."""
        if self.max_kld is not None:
            return self.max_kld
        plain = self.bits is not None and not self.prune and self.factor is None and not self.heal
        return BOUNDS[self.bits or 8] if plain else float("inf")


@dataclass(frozen=True)
class Shrunk:
    """The result of the changes to a model.

    Attributes:
        work: of few bits; None without. cuts: of each rule of pruning and of the rank.
        healed: of the training, with the distances before and after it; None without.
        parameters: before and after. before, after: bytes of the weights of the model, and of the written files.
        packed: bytes of the written weights behind zlib, where pruning has set weights to 0; else None.
        measured: what `measure` says of the model before and after; None without it.
        origin: what is to be known of the source, e.g. that it was in few bits; or "".
    """

    work: Work | None
    cuts: list[Cut]
    healed: tuple[Healed, compare.Distance, compare.Distance] | None
    parameters: tuple[int, int]
    before: int
    after: int
    packed: int | None
    distance: compare.Distance
    times: compare.Times
    measured: tuple[float, float] | None
    origin: str
    folder: str


class Missed(ValueError):
    """A result that is not good enough; nothing was written."""


def compress(
    model: Any,
    out: str | Path,
    wish: Wish,
    calibrate: str | Path | None = None,
    teacher: Any = None,
    overwrite: bool = False,
    measure: Callable[[Any], float] | None = None,
) -> Shrunk:
    """Writes a smaller model as a directory that `anyformer.load` reads.

    Args:
        model: in floats; it stays as it is.
        out: the directory.
        wish: what is to become of it.
        calibrate: a text; its first half calibrates and heals, the other compares. By default Python's documentation.
        teacher: a model to learn from; by default `model`.
        overwrite: replace a model that stands there.
        measure: of a task, on a model; asked of the model before and of the written one.

    Raises:
        ValueError: for a wish, a text, a teacher or a pattern that does not fit; naming the path, if a check fails.
        Missed: if nothing changed, or less than asked, if healing harmed, or the model moved too far.
        OSError: if it cannot be written. In all these cases nothing has been.
    """
    wish.check()
    place, held, after = free(out, overwrite), inputs_of(model, calibrate), copy.deepcopy(model)
    if teacher is not None:
        check_pair(model, teacher)
    cuts = [prune(after, rule, held.calibrate) for rule in wish.prune]
    if wish.factor is not None:
        cuts.append(factor(after, wish.factor, held.calibrate, wish.keep))
    healed = None
    if wish.heal:
        first = compare.distance(model, after, held)
        masks = {n: p != 0 for n, p in after.named_parameters()} if any(cut.zeros for cut in cuts) else {}
        done = heal(after, model if teacher is None else teacher, held, wish.heal, masks)
        healed = done, first, compare.distance(model, after, held)
        if teacher is None and healed[2].kld > first.kld:
            raise Missed(
                f"healing moved the model away from the one before: KLD {first.kld:.3g} -> {healed[2].kld:.3g} after "
                f"{wish.heal} steps; leave --heal out, take more steps, or a longer text (--calibrate)"
            )
    work = None
    if wish.bits is not None:
        entries = few.plan(after, wish.bits, wish.group, wish.keep)
        if wish.form == "gptq":
            entries = [_only(e, wish.bits, wish.group, after) for e in entries]
        if wish.finer:
            entries = _finer(after, entries, wish, held)
        work = Work(wish.method, wish.group, entries, wish.whole or wish.form == "gptq")
        _enough(work, wish.coverage)
        few.quantise(after, work, held.calibrate)
    result = _Result(model, after, held, work, cuts, healed)
    return _written(result, place, wish, measure)


def _finer(model: Any, entries: list[few.Entry], wish: Wish, held: Held) -> list[few.Entry]:
    """The plan with 8 bits where rounding moves the answers on the half that calibrates most."""
    room = wish.finer * sum(e.numbers * e.bits / 8 for e in entries if e.bits is not None)
    some = replace(held, compare=held.calibrate[:FEW], targets=[], texts=[])
    return few.finer(model, entries, wish.group, room, lambda one: compare.distance(model, one, some).kld)


def _only(entry: few.Entry, bits: int, group: int, model: Any) -> few.Entry:
    """The entry in a layout of linear layers of whole words, all with one number of bits."""
    if entry.bits is None:
        return entry
    part: Any = model.get_submodule(entry.path)
    if entry.bits != bits or isinstance(part, Table):
        return replace(entry, bits=None, why=f"GPTQ's layout is of linear layers, all in {bits} bits")
    rows, columns = part.weight.shape
    if not gptq.holds(rows, columns, bits, group):
        return replace(entry, bits=None, why="no whole groups and words of 32 bits, as GPTQ's layout needs")
    return entry


def _enough(work: Work, coverage: float | None) -> None:
    if coverage is not None and work.coverage < coverage:
        left = "; ".join(f"{e.path} ({e.why})" for e in work.entries if e.bits is None)
        raise Missed(
            f"{work.coverage:.1%} of the matrices' numbers would change, {coverage:.1%} was asked; left: {left}"
        )


@dataclass(frozen=True)
class _Result:
    """A model that is to be written, and how it was made."""

    before: Any
    after: Any
    held: Held
    work: Work | None
    cuts: list[Cut]
    healed: tuple[Healed, compare.Distance, compare.Distance] | None

    def verify(self, model: Any) -> None:
        """Checks that a model is what was made.

        Raises:
            ValueError: naming the path that is not.
        """
        if self.work is not None:
            few.verify(model, self.work)
        there = {n: tuple(t.shape) for n, t in model.state_dict().items()}
        wanted = {n: tuple(t.shape) for n, t in self.after.state_dict().items()}
        for name in sorted(there.keys() ^ wanted.keys()):
            raise ValueError(f"{name} is {'missing' if name in wanted else 'left over'} in the written model")
        for name, shape in wanted.items():
            if there[name] != shape:
                raise ValueError(f"{name} is {there[name]} in the written model, and {shape} was made")
        for cut in self.cuts if self.work is None else ():
            for path, share in cut.zeros.items():
                if float((model.get_parameter(f"{path}.weight") == 0).float().mean()) < share - 1e-3:
                    raise ValueError(f"{path} has fewer zeros than {cut.rule} made")
        if any(not cut.zeros for cut in self.cuts) and _size(model) >= _size(self.before):
            raise ValueError("the written model is no smaller than the one before")

    def verify_full(self, model: Any) -> None:
        """Checks that a model has, in full numbers, what was made in few bits.

        Raises:
            ValueError: naming the path that has not.
        """
        for name, wanted in full(self.after).state_dict().items():
            if not torch.equal(model.state_dict()[name], wanted):
                raise ValueError(f"{name} holds other numbers in the written files than the method chose")


def free(out: str | Path, overwrite: bool) -> Path:
    """The path of a new directory.

    Raises:
        ValueError: if something stands there, and not `overwrite`.
    """
    place = Path(out).expanduser()
    if place.exists() and not (place.is_dir() and (overwrite or not any(place.iterdir()))):
        raise ValueError(f"{place} exists: choose another folder, or --overwrite to replace it")
    return place


def _written(made: _Result, place: Path, wish: Wish, measure: Callable[[Any], float] | None) -> Shrunk:
    """Writes a model beside its place, reads it again, checks and compares what was read, and renames it."""
    made.verify(made.after)
    beside = place.parent / f".{place.name}.{secrets.token_hex(4)}.tmp"
    try:
        if wish.form == "gptq":
            hub.save_gptq(made.after, beside)
        else:
            hub.save(made.after, beside)
        read, bound = hub.load(beside), wish.bound
        if wish.form == "gptq":
            made.verify_full(read)
        else:
            made.verify(read)
        found = compare.distance(made.before, read, made.held)
        if not found.kld <= bound:
            raise Missed(
                f"the divergence is {found.kld:.3g}, above the bound of {bound:g} ({found}); --max-kld sets another, "
                "and --method gptq, more bits, --keep or --heal make it smaller"
            )
        taken = compare.times(made.before, read, made.held)
        measured = None if measure is None else (measure(made.before), measure(read))
        files = sorted(beside.glob("*.safetensors"))
        zeros = any(cut.zeros for cut in made.cuts)
        packed = sum(len(zlib.compress(f.read_bytes(), 1)) for f in files) if zeros else None
        size = sum(f.stat().st_size for f in files)
        if place.exists():
            shutil.rmtree(place)
        os.replace(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    counts = (_numbers(made.before), _numbers(read))
    return Shrunk(
        made.work, made.cuts, made.healed, counts, _size(made.before), size, packed, found, taken, measured,
        origin_of(made.before), str(place),
    )  # fmt: skip


def _size(model: Any) -> int:
    """Bytes of the weights of a model as it is."""
    return sum(t.nbytes for t in model.state_dict().values())


def _numbers(model: Any) -> int:
    """Numbers of the weights, those in few bits included."""
    grids = sum(m.rows * m.columns for m in model.modules() if isinstance(m, Grid))
    return grids + sum(p.numel() for p in model.parameters())


def origin_of(model: Any) -> str:
    """The remark on a source in few bits: rounding to as many again looks lossless."""
    path = None if model.ledger is None else Path(model.ledger.path)
    if path is None or not path.is_file():
        return ""
    bits = 8 * path.stat().st_size / max(1, sum(p.numel() for p in model.parameters()))
    if bits > FULL:
        return ""
    return (
        f"the source was in few bits already ({bits:.1f} a weight): the distance is to it, not to the model "
        "that it was made "
        "of, and a grid like its own looks lossless"
    )
