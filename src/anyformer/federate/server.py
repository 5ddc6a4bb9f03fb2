"""The side of the server: who is in a round, what comes back, and the mean. It holds no example.

```
draw ──> [keys ──> shares ──>] train ──> [reveal ──>] check ──> sum ──> [noise ──>] mean ──> weights ──> measures
```
A client that dies, or does not answer in time, is out for the rest of the run; one that breaks a rule too, by name. A
round goes on with those that answered, if they are more than half of those drawn (secure: at least the threshold; with
epsilon alone: any number, as the denominator is public); else it is aborted, and the weights stay as they were.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from anyformer.federate import masks, privacy, shamir
from anyformer.federate.grid import Grid
from anyformer.federate.options import FederateOptions
from anyformer.federate.privacy import Privacy
from anyformer.federate.processes import Transport
from anyformer.federate.wire import Lied, Message
from anyformer.train.schedule import rate
from anyformer.train.tasks.tables import in_order

SEALED = 2 * shamir.SHARE + 16  # bytes of two shares and their tag


class Aborted(Exception):
    """A round that has no result."""


@dataclass
class Round:
    """The result of a round; also a row of federated.json.

    Attributes:
        drawn: clients in it. answered: those in the mean. dropped: by name, why.
        clipped: share of the updates that were too long. up, down: bytes to and from the server.
        measures: of each client, of the weights behind the round; mean: over all held-out examples.
        epsilon: spent so far. aborted: why there is no result.
    """

    number: int
    drawn: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    loss: float | None = None
    clipped: float | None = None
    up: int = 0
    down: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    mean: float | None = None
    epsilon: float | None = None
    aborted: str = ""


class Server:
    """The rounds of a run.

    Attributes:
        facts: of each client that is in, what `prepare` said. out: clients that are out, and why.
        plan: task, names, context, columns. weights: float32 (P,).
    """

    def __init__(self, o: FederateOptions, transport: Transport, clients: Iterable[str]):
        self.o, self.transport, self.clients = o, transport, list(clients)
        self.facts: dict[str, dict[str, Any]] = {}
        self.out: dict[str, str] = {}
        self.plan: dict[str, Any] = {}
        self.weights = np.zeros(0, np.float32)
        self.privacy: Privacy | None = None
        self.notes: list[str] = []
        self.run = secrets.token_hex(8)
        self.counted = (0, 0)  # bytes of the rounds so far

    def introduce(self) -> dict[str, Any]:
        """The plan: what all clients agree on; labels are those of all of them together.

        Raises:
            ValueError: if fewer than two clients are left.
        """
        said = self._ask({name: Message("introduce") for name in self.clients}, self.out)
        first: dict[str, Any] = {}
        for name, m in list(said.items()):
            mine = {key: m.facts.get(key) for key in ("task", "columns", "context")}
            if not _texts(m.facts.get("names")) or not _texts(m.facts.get("said")):
                self.out[name] = f"its labels are {m.facts.get('names')!r:.60}; expected a list of texts"
                del said[name]
            elif mine != (first := first or mine):
                self.out[name] = f"it has {mine}, and the first client {first}"
                del said[name]
        self._enough(said)
        names = {tuple(m.facts["names"]) for m in said.values()}
        every = next(iter(names)) if len(names) == 1 else in_order({n for some in names for n in some})
        for name, m in said.items():
            if missing := [n for n in every if n not in m.facts["names"]]:
                self.notes.append(f"{name} has no example of {', '.join(missing)}")
        if len(every) == 1:
            raise ValueError(f"all clients together have one class only: {every[0]!r}; classification needs two")
        letters = sorted({c for m in said.values() for c in m.facts["said"]})
        self.plan = {**first, "names": list(every), "said": letters}
        self.clients = list(said)
        return self.plan

    def prepare(self, layout: str, size: int) -> None:
        """All clients make the same model and encode their examples.

        Raises:
            ValueError: if fewer than two clients have it.
        """
        said = self._ask({name: Message("prepare", self.plan) for name in self.clients}, self.out)
        for name, m in said.items():
            f, count = m.facts, m.facts.get("examples")
            if f.get("layout") != layout:
                self.out[name] = f"its model has other parameters: {f.get('numbers')} numbers, here {size}"
            elif type(count) is not int or not 0 < count < 2**31 or type(f.get("held_out")) is not int:
                self.out[name] = f"its number of examples is {count!r}; expected a whole number above 0"
            else:
                self.facts[name] = f
        self._enough(self.facts)

    def _enough(self, left: Iterable[str]) -> None:
        if len(list(left)) < 2:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.out.items()) or "the folder has no other"
            raise ValueError(f"a federation needs two clients, and {len(list(left))} can take part. {why}")

    def present(self) -> list[str]:
        """The clients that are still in."""
        return [name for name in self.facts if name not in self.out]

    def publish(self, weights: np.ndarray) -> None:
        """Gives all clients these weights."""
        self.weights = weights
        self.transport.broadcast(Message("weights", {}, {"weights": weights}))

    def measure(self, row: Round) -> None:
        """Adds each client's measure of the weights, their mean over all held-out examples, and the round's bytes."""
        wanted = [] if self.o.blind else self.present()
        said = self._ask({name: Message("measure") for name in wanted}, self.out)
        told = {name: m.facts.get("measure") for name, m in said.items()}
        row.measures = {n: v for n, v in told.items() if type(v) is float and np.isfinite(v)}
        count = {name: self.facts[name]["held_out"] for name in row.measures}
        row.mean = sum(row.measures[n] * count[n] for n in count) / sum(count.values()) if count else None
        now = (self.transport.received, self.transport.sent)
        row.up, row.down = now[0] - self.counted[0], now[1] - self.counted[1]
        self.counted = now

    def round(self, number: int) -> Round:
        """One round, from 1, from drawing to the new weights, which change only if it succeeds.

        Raises:
            ValueError: if fewer than two clients are left, or too many values are outside of the grid.
        """
        row = Round(number)
        self._enough(self.present())
        seed = secrets.randbits(128) if self.privacy else [self.o.seed, number]
        draw = np.random.default_rng(seed)
        row.drawn = [name for name in self.facts if draw.random() < self.o.sample and name not in self.out]
        facts = {"round": number - 1, "lr": self._rate(number - 1), "secure": self.o.secure}
        try:
            mean = self._secure(row, facts) if self.o.secure else self._plain(row, facts)
        except Aborted as why:
            row.aborted, row.answered = str(why), []
        else:
            self.weights = (self.weights + mean).astype(np.float32)
        if self.privacy:
            row.epsilon = self.privacy.spent(number)  # an aborted round counts, too
        return row

    def _rate(self, number: int) -> float:
        lr = self.o.of("x").resolved(1, None).lr
        return lr * rate(self.o.schedule, number, self.o.rounds + 1, 0, 0.0)

    def _plain(self, row: Round, facts: dict[str, Any]) -> np.ndarray:
        """The mean of the updates that come."""
        said = self._ask({name: Message("train", facts) for name in row.drawn}, row.dropped)
        total, weight = np.zeros(len(self.weights)), 0.0
        for name, m in said.items():
            if why := self._lie(name, m, "update", "<f4"):
                row.dropped[name] = self.out[name] = why
                continue
            share = 1.0 if self.privacy else float(m.facts["examples"])
            total, weight = total + share * m.arrays["update"].astype(np.float64), weight + share
            row.answered.append(name)
        if not self.privacy and 2 * len(row.answered) <= len(row.drawn):
            raise Aborted(f"{len(row.answered)} of {len(row.drawn)} clients answered, and more than half are needed")
        self._tally(row, said)
        return self.privacy.mean(total) if self.privacy else total / weight

    def _lie(self, name: str, m: Message, array: str, dtype: str) -> str:
        """The fault of an answer; empty if there is none."""
        made, f = m.arrays.get(array), m.facts
        if made is None or made.dtype.str != dtype or made.shape != self.weights.shape:
            came = "nothing" if made is None else f"{made.dtype.str} {list(made.shape)}"
            return f"its {array} is {came}; expected {dtype} {list(self.weights.shape)}"
        if f.get("examples") != self.facts[name]["examples"]:
            return f"it says {f.get('examples')!r} examples, and said {self.facts[name]['examples']} before"
        if not self.o.blind and (type(f.get("clipped")) is not bool or type(f.get("loss")) is not float):
            return "its answer has no loss, or does not say if it was clipped"
        if array == "update" and not np.isfinite(made).all():
            return "its update has values that are not finite"
        if array == "update" and self.o.clip is not None:
            length = float(np.linalg.norm(made.astype(np.float64)))
            if length > self.o.clip * (1 + privacy.ROUNDING):
                return f"its update has the length {length:.6g}, and {self.o.clip:g} is allowed"
        return ""

    def _tally(self, row: Round, said: Mapping[str, Message]) -> None:
        there = [said[name].facts for name in row.answered]
        if there and not self.o.blind:
            row.loss = float(np.mean([f["loss"] for f in there]))
            row.clipped = None if self.o.clip is None else float(np.mean([f["clipped"] for f in there]))

    def _secure(self, row: Round, facts: dict[str, Any]) -> np.ndarray:
        """The mean, of which the server sees the sum alone; see `masks`."""
        count = len(row.drawn)
        least = self.o.threshold or max(2, count // 2 + 1)
        if count < least or 2 * least <= count:
            raise Aborted(
                f"{count} clients were drawn, and a threshold of {least} must be more than half and at most all"
            )
        tag, place = f"{self.run} {row.number}", {name: i for i, name in enumerate(row.drawn, 1)}
        publics, sealed = self._keys(row, facts, least, tag, place)
        grid = Grid(self.o.bits, self.privacy.clip if self.privacy else self.o.limit, count)
        examples = sum(self.facts[name]["examples"] for name in row.drawn)
        share = {n: 1.0 if self.privacy else self.facts[n]["examples"] / examples for n in row.drawn}
        shared = {place[name]: name for name in row.drawn if place[name] in sealed}
        asked = {}
        for u, name in shared.items():
            texts = {v: sealed[v][u] for v in shared if v != u}
            more = {"grid": asdict(grid), "share": share[name], "places": list(texts)}
            asked[name] = Message("train", {**facts, **more}, {"sealed": np.stack(list(texts.values()))})
        said = self._stage(row, least, asked, lambda name, m: self._lie(name, m, "words", grid.dtype.str))
        row.answered, there = list(said), {place[name] for name in said}
        total, gone = np.zeros(len(self.weights), grid.dtype), set(shared) - there
        for m in said.values():
            total += m.arrays["words"]
        lists = {**facts, "there": sorted(there), "gone": sorted(gone)}
        revealed = self._stage(
            row, least, {name: Message("reveal", lists) for name in said},
            lambda _, m: _shape(m, "shares", (len(shared), shamir.SHARE)) or _places(m, shared, 0),
        )  # fmt: skip
        shares = {place[u]: {v: bytes(s) for v, s in _by_place(m, "shares").items()} for u, m in revealed.items()}
        try:
            total = masks.unmask(total, publics, shares, there, gone, least, tag.encode())
        except ValueError as error:
            raise Aborted(str(error)) from None
        self._tally(row, said)
        summed = grid.values(total)
        return self.privacy.mean(summed) if self.privacy else summed / sum(share[name] for name in said)

    def _keys(
        self, row: Round, facts: dict[str, Any], least: int, tag: str, place: dict[str, int]
    ) -> tuple[dict[int, bytes], dict[int, dict[int, np.ndarray]]]:
        """The public keys by place, and the sealed shares: from whom, to whom."""
        asked = {name: Message("keys", {**facts, "place": place[name], "tag": tag}) for name in row.drawn}
        said = self._stage(row, least, asked, lambda _, m: _shape(m, "public", (masks.PUBLIC,)))
        publics = {place[name]: bytes(m.arrays["public"]) for name, m in said.items()}
        listed = {**facts, "places": list(publics), "threshold": least}
        every = {"publics": np.stack([np.frombuffer(key, np.uint8) for key in publics.values()])}
        said = self._stage(
            row, least, {name: Message("shares", listed, every) for name in said},
            lambda n, m: _shape(m, "sealed", (len(publics) - 1, SEALED)) or _places(m, publics, place[n]),
        )  # fmt: skip
        return publics, {place[u]: _by_place(m, "sealed") for u, m in said.items()}

    def _stage(
        self, row: Round, least: int, messages: dict[str, Message], check: Callable[[str, Message], str]
    ) -> dict[str, Message]:
        """The answers of one stage that pass the check.

        Raises:
            Aborted: for fewer than `least`.
        """
        said, kind = self._ask(messages, row.dropped), next(iter(messages.values())).kind
        for name in list(said):
            if why := check(name, said[name]):
                row.dropped[name] = self.out[name] = why
                del said[name]
        if len(said) < least:
            count = len(row.drawn)
            raise Aborted(f"{len(said)} of {count} clients are left at {kind}, and {least} are needed: no sum is known")
        return said

    def _ask(self, messages: Mapping[str, Message], dropped: dict[str, str]) -> dict[str, Message]:
        """The answers that are well; who else is out, or has dropped, is noted with the reason.

        Raises:
            ValueError: for an answer that no other round could mend.
        """
        good: dict[str, Message] = {}
        for name, answer in self.transport.ask(messages).items():
            if isinstance(answer, Exception):
                lied = isinstance(answer, Lied)
                dropped[name] = self.out[name] = str(answer) if lied else f"gone: {answer}"
            elif answer.kind == "error":
                dropped[name] = str(answer.facts.get("why"))
                if answer.facts.get("fatal"):
                    raise ValueError(f"{name}: {dropped[name]}")
            elif answer.kind == "dropped":
                dropped[name] = f"left at {messages[name].kind} (--drop)"
            else:
                good[name] = answer
        return good


def _shape(m: Message, name: str, shape: tuple[int, ...]) -> str:
    made = m.arrays.get(name)
    came = "nothing" if made is None else f"{made.dtype.str} {list(made.shape)}"
    return (
        "" if made is not None and came == f"|u1 {list(shape)}" else f"its {name} is {came}; expected |u1 {list(shape)}"
    )


def _places(m: Message, known: Iterable[int], own: int) -> str:
    came, wanted = m.facts.get("places"), sorted(v for v in known if v != own)
    right = isinstance(came, list) and all(type(v) is int for v in came) and sorted(came) == wanted
    return "" if right else f"its places are {came}; expected {wanted}"


def _by_place(m: Message, name: str) -> dict[int, Any]:
    return dict(zip(m.facts["places"], m.arrays[name], strict=True))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)
