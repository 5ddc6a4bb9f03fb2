"""From the tensors of a file to the model: each is mapped to a parameter, known to carry nothing, or refused."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core import pages
from anyformer.core.init import initialise
from anyformer.hub.formats.safetensors import TensorFile
from anyformer.hub.ledger import Ledger, TensorLine
from anyformer.hub.tables.weights import COUNTER, RUNNING, Hub, Link

Classes = Mapping[str, tuple[str, list[Link]]]
NAMED = 5  # the most tensors of a kind that an error names


@dataclass
class Filling:
    """A model that is filled from one file.

    Args:
        dtype: of the weights; None = as stored, one type for all (see `one_type`).
        fresh: patterns of our paths that can be missing in the file.
        others: the other classes of the map: name -> the option of `load` for it, and its tensors.
        untied: our paths of weights that the caller unties: the file stores one weight for two.
    """

    model: nn.Module
    hub: Hub
    file: TensorFile
    ledger: Ledger
    dtype: torch.dtype | None = None
    device: str | torch.device = "cpu"
    fresh: tuple[str, ...] = ()
    others: Callable[[], Classes] = dict
    untied: Callable[[], Collection[str]] = tuple
    _drawn: dict[str, Tensor] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)  # of the table -> the older ones that the file has
    _counters: dict[str, int] = field(default_factory=dict)  # name of a counter that nothing reads -> its value

    def run(self, table: list[Link]) -> None:
        """Moves each tensor into the model and records its status in the ledger.

        Raises:
            ValueError: naming the tensors that are missing, left over, of another shape or kind, or contradictory.
        """
        counters = {n.removesuffix(RUNNING) + COUNTER for n in names_of(table) if n.endswith(RUNNING)}
        expected = names_of(table) | counters
        stored = canonical(self.hub, self.file.names(), expected, functools.cache(self._elsewhere))
        present = set(stored)
        shapes = {k: tuple(v.shape) for k, v in self.model.state_dict().items()}
        self.dtype = self.dtype or one_type(self.file, stored.values(), self.ledger)
        missing, unfit = dict[str, Link](), list[str]()
        for link in sorted(table, key=lambda k: k.tied):  # tied ones last: they are compared with loaded ones
            names = self._stored(link, stored)
            if not names and not link.tied:  # the only copy can have the name of another tied tensor
                twins = [k for k in table if k.tied and k.ours == link.ours]
                link, names = next(((k, n) for k in twins if (n := self._stored(k, stored))), (link, []))
                link = dataclasses.replace(link, tied=False)
            if not names:
                if not link.tied and not self._fresh(link, shapes):
                    missing |= {n: link for n in link.theirs if not stored.pop(n, None)}
                continue
            try:
                named = dataclasses.replace(link, theirs=tuple(names))  # errors name what stands in the file
                tensors = named.read([self.file.get(name) for name in names], [shapes[o] for o in link.ours])
            except ValueError as error:
                unfit.append(str(error))
                if len(unfit) == NAMED:
                    break
                continue
            if link.tied and not unfit:
                _same(", ".join(names), tensors[0], link.ours[0], self.model)
            elif not link.tied:
                for ours, tensor in zip(link.ours, tensors, strict=True):
                    self._put(ours, tensor, ", ".join(names))
            done = ("derived", f"equal to {link.ours[0]}") if link.tied else ("used", ", ".join(link.ours))
            for name in names:
                self._line(name, *done)
        if unfit:
            raise ValueError("; ".join(unfit))
        missing = {name: link for name, link in missing.items() if not self._copied(link)}
        self._pass_over(stored, counters)
        if missing or stored:
            raise ValueError(_refusal(missing, list(stored.values()), able(self.others(), present)))

    @property
    def habits(self) -> dict[str, Any]:
        """Details of the file that `save` writes back, by names of the table: older names, counters."""
        return {k: v for k, v in {"names": self._names, "counters": self._counters}.items() if v}

    def _elsewhere(self) -> set[str]:
        """The names of all tensors of the map's other classes."""
        return set().union(*(names_of(table) for _, table in self.others().values()))

    def _stored(self, link: Link, stored: dict[str, str]) -> list[str]:
        """The names in the file of the link's tensors, taken out of `stored`; none unless all are there."""
        present = [names for names in (link.theirs, *link.also) if stored.keys() >= set(names)]
        if len(present) > 1:
            raise ValueError(
                f"the file holds {present[0][0]!r} and, under its older name, {present[1][0]!r}; remove one of them"
            )
        for names in present:
            self._names |= {n: old for n, old in zip(link.theirs, names, strict=True) if n != old}
        return [stored.pop(name) for names in present for name in names]

    def _pass_over(self, stored: dict[str, str], counters: Collection[str]) -> None:
        """Takes tensors that carry nothing, and heads that the model lacks, out of `stored`."""
        for name in [n for n in stored if n in counters]:
            counter = self.file.get(stored[name])
            if counter.shape or counter.dtype != torch.int64:
                raise ValueError(f"tensor {stored[name]!r} counts batches and must be a whole number of 64 bits")
            self._counters[name] = int(counter)
            self._line(stored.pop(name), "ignored", "counts the batches of training; kept for round trips, not used")
        for name in [n for n in stored if self.hub.ignored(n)]:
            self._line(stored.pop(name), "ignored", self.hub.ignored(name) or "")
        for owner, (how, table) in self.others().items() if stored else ():
            names = names_of(table)
            for name in [n for n in stored if n in names]:
                self._line(stored.pop(name), "ignored", f"of a {owner}, which was not requested; {how} reads it")

    def _fresh(self, link: Link, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Initialises a missing parameter in `fresh` with the weights that its part draws; True if it did."""
        if not all(any(fnmatch.fnmatchcase(o, p) for p in self.fresh) for o in link.ours):
            return False
        if not self._drawn:
            self._drawn = first_weights(self.model)
        for name in link.ours:
            self._put(name, self._drawn[name], name)
            line = TensorLine(name, shapes[name], str(self._drawn[name].dtype)[6:], "fresh", "first weights, as asked")
            self.ledger.tensors.append(line)
        return True

    def _copied(self, link: Link) -> bool:
        """Fills a weight that the caller unties from the one that the file stores."""
        if link.twin is None or link.ours[0] not in self.untied():
            return False
        tensor = self.model.state_dict()[link.twin].clone()
        self._put(link.ours[0], tensor, link.theirs[0])
        line = TensorLine(link.ours[0], tuple(tensor.shape), str(tensor.dtype)[6:], "fresh", f"a copy of {link.twin}")
        self.ledger.tensors.append(line)
        return True

    def _line(self, name: str, status: str, detail: str) -> None:
        dtype = str(self.file.dtype(name))[6:]
        self.ledger.tensors.append(TensorLine(name, self.file.shape(name), dtype, status, detail))

    def _put(self, path: str, tensor: Tensor, name: str) -> None:
        """Sets the tensor as the model's parameter or buffer at that path, without a copy where possible."""
        owner, _, last = path.rpartition(".")
        module = self.model.get_submodule(owner)
        held = getattr(module, last)
        plain = tensor.is_floating_point() and tensor.element_size() > 1
        if held.is_floating_point() and not plain:
            raise ValueError(
                f"tensor {name!r} is {str(tensor.dtype)[6:]}, and {path!r} needs floating point of 16 bits or more: "
                "quantised weights are read from GGUF only"
            )
        if held.dtype in (torch.uint8, torch.int16) and tensor.dtype != held.dtype:
            raise ValueError(
                f"tensor {name!r} is {str(tensor.dtype)[6:]}, and {path!r} of a matrix in few bits is "
                f"{str(held.dtype)[6:]}"
            )
        if self.dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        tensor = tensor.contiguous().to(self.device)
        setattr(module, last, tensor if last in module._buffers else nn.Parameter(tensor))  # a buffer is never trained


def names_of(table: Iterable[Link]) -> set[str]:
    """All names of theirs in a table, older ones included."""
    return {name for link in table for names in (link.theirs, *link.also) for name in names}


def canonical(hub: Hub, names: Iterable[str], expected: set[str], elsewhere: Callable[[], set[str]]) -> dict[str, str]:
    """The names in the table's spelling -> in the file's: missing prefixes and older endings are mapped. `elsewhere`:
    names that other classes of the map have."""
    names = list(names)
    bare = bool(hub.base) and not any(n.startswith(hub.base) for n in names)
    out: dict[str, str] = {}
    for name in names:
        stem, _, tail = name.rpartition(".")
        full = f"{stem}.{hub.tails[tail]}" if tail in hub.tails else name
        based = hub.base + full
        if bare and (based in expected or hub.ignored(based) or (full not in expected and based in elsewhere())):
            full = hub.base + full
        if full in out:
            raise ValueError(f"the file holds {out[full]!r} and {name!r}, which are two names of one tensor")
        out[full] = name
    return out


def one_type(file: TensorFile, names: Iterable[str], ledger: Ledger) -> torch.dtype | None:
    """The one type for weights that a file stores in several: that of its config, else that of most numbers; None if
    the file has one type. The choice is a line of the ledger."""
    sizes: dict[torch.dtype, int] = {}
    for name in names:
        if (dtype := file.dtype(name)).is_floating_point:
            sizes[dtype] = sizes.get(dtype, 0) + torch.Size(file.shape(name)).numel()
    if len(sizes) < 2:
        return None
    configured = next((line.value for line in ledger.config if line.key in ("dtype", "torch_dtype")), None)
    named = getattr(torch, str(configured).removeprefix("torch."), None)
    chosen = named if named in sizes else max(sizes, key=lambda d: sizes[d])
    assert isinstance(chosen, torch.dtype)
    stored = ", ".join(str(d)[6:] for d in sizes)
    ledger.notes.append(f"stored as {stored}; all became {str(chosen)[6:]} (load(..., dtype=) takes another)")
    return chosen


def first_weights(model: Any) -> dict[str, Tensor]:
    """The initial weights of this model, as its parts draw them, by name."""
    made = model.recipe.build()
    initialise(made)
    return made.state_dict()


def _same(name: str, tensor: Tensor, ours: str, model: nn.Module) -> None:
    """Refuses a second stored copy of a tied weight that differs from the first."""
    held = model.get_parameter(ours)
    if held.is_meta:
        return  # the first one is missing, which is an error of its own
    if not torch.equal(tensor.to(held.dtype).to(held.device), held):
        raise ValueError(
            f"tensor {name!r} differs from {ours!r}, although they are one (tied) weight by the config; load(..., "
            "tied=False) keeps both"
        )


def able(classes: Classes, present: Set[str]) -> list[str]:
    """The options of `load` for the classes of which all tensors are there."""
    return [
        f"{how} (a {owner})"
        for owner, (how, table) in classes.items()
        if all(link.tied or any(present >= set(names) for names in (link.theirs, *link.also)) for link in table)
    ]


def _refusal(missing: Mapping[str, Link], left: list[str], instead: list[str]) -> str:
    """The error message: tensors that are missing and left over, each with the nearest name on the other side, and
    classes that could be read instead."""
    parts = []
    if missing:
        names = [f"{name} (our {', '.join(link.ours)})" for name, link in missing.items()]
        near = difflib.get_close_matches(next(iter(missing)), left, 1, 0.6)
        hint = f"; the file has {near[0]!r}" if near else ""
        parts.append(f"{len(names)} tensors are missing in the file: {'; '.join(names[:NAMED])}{hint}")
        if instead:
            parts.append(f"Without them it can be read by {' or '.join(instead)}")
    if left:
        parts.append(f"{len(left)} tensors of the file are not in the model: {', '.join(left[:NAMED])}")
    return ". ".join(parts) + ". Nothing was loaded"


def class_tables(page: pages.Page, hub: Hub, hyper: Any, links: Callable[[Any], list[Link]]) -> Classes:
    """For each class of the map: the option of `load` for it, and its tensors."""
    tables = {}
    for owner, fixed in hub.architectures.items():
        if all(getattr(hyper, k) == v for k, v in fixed.items()):
            continue
        try:
            table = links(dataclasses.replace(hyper, **fixed))
        except ValueError:  # hyperparameters that do not go with this class
            continue
        how = "load(..., " + ", ".join(f"{k}={v!r}" for k, v in fixed.items()) + ")"
        tables[owner] = (how, table)
    return tables
