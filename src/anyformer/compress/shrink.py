"""A model made smaller and written, with what that cost measured on real text: the work of `anyformer compress`.

The written files are read again, and it is that model which is checked, compared and timed. A folder appears whole or
not at all: it is made beside its place and renamed at the end.
"""

from __future__ import annotations

import copy
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer import hub
from anyformer.compress import compare, few
from anyformer.compress.few import Method, Work
from anyformer.compress.held import Held, inputs_of

FULL = 12  # bits a weight of a file, from which its weights are no rounded ones
BOUNDS = {8: 0.01, 4: 0.1, 3: 0.5}  # nats of divergence that each number of bits may cost


@dataclass(frozen=True)
class Shrunk:
    """What became of a model.

    Attributes:
        before, after: bytes of the weights' files, of the source as it would be written, and of the result.
        origin: what is to be known of the source, e.g. that it was in few bits; or "".
    """

    work: Work
    before: int
    after: int
    distance: compare.Distance
    times: compare.Times
    origin: str
    folder: str


class Missed(ValueError):
    """A result that is not good enough; nothing was written."""


def compress(
    model: Any,
    out: str | Path,
    bits: int,
    method: Method = "rtn",
    group: int = 32,
    calibrate: str | Path | None = None,
    keep: Sequence[str] = (),
    max_kld: float | None = None,
    coverage: float | None = None,
    overwrite: bool = False,
) -> Shrunk:
    """Writes a model with its matrices in few bits, as a directory that `anyformer.load` reads.

    Args:
        model: in floats; it stays as it is.
        out: the directory.
        bits: 8, 4 or 3; tables and matrices with a row for each token have 8 at least.
        method: see `compress.rounding`.
        group: inputs that share a scale and a zero.
        calibrate: a text; its first half calibrates, the other compares. By default Python's documentation.
        keep: path patterns of parts that stay as they are.
        max_kld: the largest divergence from the model before; by default `BOUNDS`.
        coverage: the least share of the numbers of all matrices that must change.
        overwrite: replace a model that stands there.

    Raises:
        ValueError: for bits, a group, a text, or a pattern that does not fit; naming the path, if a check fails.
        Missed: if nothing changed, or less than asked, or the model moved too far.
        OSError: if it cannot be written. In all these cases nothing has been.
    """
    if bits not in BOUNDS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BOUNDS))}, got {bits}")
    for name, value in (("coverage", coverage), ("max_kld", max_kld)):
        if value is not None and not (value >= 0 if name == "max_kld" else 0 < value <= 1):
            raise ValueError(
                f"{name} must be {'at least 0' if name == 'max_kld' else 'above 0 and at most 1'}, got {value}"
            )
    place = free(out, overwrite)
    held, after = inputs_of(model, calibrate), copy.deepcopy(model)
    work = Work(method, group, few.plan(after, bits, group, keep))
    if coverage is not None and work.coverage < coverage:
        left = "; ".join(f"{e.path} ({e.why})" for e in work.entries if e.bits is None)
        raise Missed(
            f"{work.coverage:.1%} of the matrices' numbers would change, {coverage:.1%} was asked; left: {left}"
        )
    few.quantise(after, work, held.calibrate)
    few.verify(after, work)
    bound = BOUNDS[bits] if max_kld is None else max_kld
    return written(model, after, place, held, work, lambda read: few.verify(read, work), bound)


def free(out: str | Path, overwrite: bool) -> Path:
    """The path of a new directory.

    Raises:
        ValueError: if something stands there, and not `overwrite`.
    """
    place = Path(out).expanduser()
    if place.exists() and not (place.is_dir() and (overwrite or not any(place.iterdir()))):
        raise ValueError(f"{place} exists: choose another folder, or --overwrite to replace it")
    return place


def written(
    before: Any, after: Any, place: Path, held: Held, work: Work, verify: Callable[[Any], None], bound: float
) -> Shrunk:
    """Writes a model beside its place, reads it again, checks and compares what was read, and renames it."""
    beside = place.parent / f".{place.name}.{secrets.token_hex(4)}.tmp"
    try:
        size = _plain_size(before)
        hub.save(after, beside)
        read = hub.load(beside)
        verify(read)
        found = compare.distance(before, read, held)
        if not found.kld <= bound:
            raise Missed(
                f"the divergence is {found.kld:.3g}, above the bound of {bound:g} ({found}); --max-kld sets "
                "another, and "
                "--method gptq, more bits or --keep make it smaller"
            )
        taken = compare.times(before, read, held)
        after_size = sum(f.stat().st_size for f in beside.glob("*.safetensors"))
        if place.exists():
            shutil.rmtree(place)
        os.replace(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Shrunk(work, size, after_size, found, taken, origin_of(before), str(place))


def _plain_size(model: Any) -> int:
    """Bytes of the weights of a model as it is."""
    return sum(t.nbytes for t in model.state_dict().values())


def origin_of(model: Any) -> str:
    """What the source already was: few bits look lossless when they are rounded to as many again."""
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
