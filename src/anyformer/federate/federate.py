"""`federate`: a model learns from examples that stay with their clients. The same function is `anyformer federate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from anyformer.core.options import takes
from anyformer.core.shown import Shown
from anyformer.federate import privacy
from anyformer.federate.host import Vector
from anyformer.federate.options import FREE, FederateOptions
from anyformer.federate.processes import Processes, Transport
from anyformer.federate.server import Round, Server
from anyformer.hub.formats.guard import atomic_write
from anyformer.train import checkpoint, master_weights, model_source
from anyformer.train.distributed.base import World
from anyformer.train.finetune import finish, ready
from anyformer.train.progress import Screen
from anyformer.train.session import Session

FILE = "federated.json"


@dataclass(frozen=True)
class Federated(Shown):
    """Result of `federate`.

    Attributes:
        folder: a model directory, adapters merged. rounds: what each did; the first is before any.
        out: clients that left the run for good, and why.
        epsilon: spent; None without privacy. assumptions: what it stands for.
        numbers: how many are trained. unit: of the measures. model: the model itself, adapters merged.
    """

    folder: Path
    rounds: tuple[Round, ...]
    out: dict[str, str]
    epsilon: float | None
    assumptions: tuple[str, ...]
    numbers: int
    unit: str
    model: Any = field(repr=False)


@takes(FederateOptions)
def federate(options: FederateOptions) -> Federated:
    """Fine-tunes a model on the examples of clients that stay with them, in processes of their own on this machine.

    Takes the fields of `FederateOptions` by name. Each round the clients that were drawn train a copy and send the
    difference; the server averages, by numbers of examples (FedAvg; McMahan et al., 2017; arXiv:1602.05629), or with
    epsilon alike and with noise. Each finished round is a checkpoint in `out`; `federated.json` has what each did.

    Returns:
        The folder of the model, the rounds, and the privacy spent.

    Raises:
        ValueError: before the first round, for options that contradict each other, clients that do not fit, an epsilon
            that they cannot give, a folder that holds another run; later, when fewer than two clients are left.
        OSError: for a model or data that does not exist, a folder that cannot be written, a full disk.

    Example:
        anyformer federate minilm --clients hospitals --rounds 10 --secure --out runs/together
    """
    clients = listed(Path(options.clients).expanduser())
    lm = model_of(options)  # before any process starts: its mistakes are said once
    with Processes(options, clients) as transport:
        return play(options, lm, transport, list(clients))


def model_of(o: FederateOptions) -> Any:
    """The model as it came."""
    return model_source.pretrained(o.model, o.tokenizer, o.overrides, o.ignore)


def play(options: FederateOptions, lm: Any, transport: Transport, clients: Sequence[str]) -> Federated:
    """All rounds of a run, with clients that a transport reaches; see `federate`."""
    with checkpoint.Run(options.out, options.resume) as run, Screen(options.quiet) as screen:
        server = Server(options, transport, clients)
        plan = server.introduce()
        own = options.of(options.clients)
        lm, summary = ready(lm, plan["task"], tuple(plan["names"]), own, plan["said"])
        vector = Vector(lm)
        transport.allow(16 * vector.size + (1 << 20))
        server.prepare(vector.layout, vector.size)
        server.privacy = mechanism(options, len(server.facts), vector.size)
        rows = resumed(options, run, vector, server) or [Round(0)]
        tell(screen, options, server, summary, vector.size)
        server.publish(vector.read())
        if rows[-1].mean is None:  # at first, or of a run that ended before its clients answered
            server.measure(rows[-1])
        screen.message(line(rows[-1]))
        while len(rows) <= options.rounds:
            row = server.round(len(rows))
            rows.append(row)
            vector.write(server.weights)
            save(options, run, lm, vector.types, rows, server)  # before anybody sees the weights: it is spent
            server.publish(server.weights)
            server.measure(row)
            report(options, run, rows, server)
            screen.message(line(row))
        for name, why in server.out.items():
            screen.message(f"{name} is out: {why}")
        master_weights.restore_types(lm, vector.types)
        folder = finish(lm, Session(own, World(), run, screen), run.folder / f"step-{options.rounds:06d}")
        unit = next(iter(server.facts.values()))["unit"]
        screen.message(f"model: {folder}")
    private = server.privacy
    spent, told = (None, []) if private is None else (rows[-1].epsilon, private.assumptions(options.blind))
    return Federated(folder, tuple(rows), dict(server.out), spent, tuple(told), vector.size, unit, lm.eval())


def listed(folder: Path) -> dict[str, Path]:
    """The clients in a folder, by name.

    Raises:
        FileNotFoundError: if there is no such folder. ValueError: for fewer than two, or two of one name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"clients: there is no folder {str(folder)!r}; each file or folder in it is a client")
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if len(paths) < 2:
        raise ValueError(
            f"{folder} holds {len(paths)} client{'s' * (len(paths) != 1)}, and a federation needs two; one alone is "
            "`anyformer finetune`"
        )
    names = {path.name if path.is_dir() else path.name.split(".")[0]: path for path in paths}
    return names if len(names) == len(paths) else {path.name: path for path in paths}


def mechanism(o: FederateOptions, clients: int, numbers: int) -> privacy.Privacy | None:
    """The noise of a run, or None.

    Raises:
        ValueError: for an epsilon that these clients cannot give.
    """
    if o.epsilon is None:
        return None
    assert o.clip is not None
    return privacy.planned(o.epsilon, o.delta, o.clip, o.sample, clients, o.rounds, numbers)


def tell(screen: Screen, o: FederateOptions, server: Server, summary: str, numbers: int) -> None:
    """The announcement of the run."""
    examples = sum(f["examples"] for f in server.facts.values())
    screen.message(
        f"{o.model}, {server.plan['task']}: {len(server.facts)} clients, {examples:,} examples; {numbers:,} numbers "
        f"travel ({summary}); clients use {o.optimizer}{'' if o.optimizer == 'adamw' else ' without momentum'}"
    )
    for note in server.notes:
        screen.message(note)
    for name, why in server.out.items():
        screen.message(f"{name} is left out: {why}")
    if server.privacy is not None:
        screen.message(f"epsilon={server.privacy.spent(o.rounds):.4g} after {o.rounds} rounds, which assumes:")
        for text in server.privacy.assumptions(o.blind):
            screen.message(f"  {text}")
    if o.secure:
        screen.message("secure sums: the server keeps to the protocol, and sees masked vectors and the sum")


def line(row: Round) -> str:
    """A round in a line."""
    parts = [f"round {row.number}"]
    if row.number:
        parts.append(f"{len(row.answered)} of {len(row.drawn)} clients")
    if row.aborted:
        parts.append(f"ABORTED: {row.aborted}")
    if row.mean is not None:
        parts.append(f"held-out {row.mean:.4f} ({', '.join(f'{n} {v:.4f}' for n, v in row.measures.items())})")
    if row.number:
        parts.append(f"up {row.up / 1e6:.2f} MB, down {row.down / 1e6:.2f} MB")
    if row.clipped is not None:
        parts.append(f"{row.clipped:.0%} clipped")
    if row.epsilon is not None:
        parts.append(f"epsilon {row.epsilon:.4g}")
    if row.dropped:
        parts.append(f"dropped: {'; '.join(f'{n}: {why}' for n, why in row.dropped.items())}")
    return "; ".join(parts)


def save(
    o: FederateOptions, run: checkpoint.Run, lm: Any, types: dict[str, torch.dtype], rows: list[Round], server: Server
) -> None:
    """The round as a checkpoint."""
    facts = {"options": _options(o), "rounds": [asdict(row) for row in rows]}
    tensors = {"weights": torch.from_numpy(server.weights)}
    run.save(len(rows) - 1, lm, lm.state_dict(), tensors, facts, 2, None, types=types)


def report(o: FederateOptions, run: checkpoint.Run, rows: list[Round], server: Server) -> None:
    """federated.json: all that is known of the run."""
    told = None if server.privacy is None else server.privacy.assumptions(o.blind)
    every = [asdict(row) for row in rows]
    content = {"options": _options(o), "clients": server.facts, "out": server.out, "assumptions": told, "rounds": every}
    atomic_write(run.folder / FILE, (json.dumps(content, indent=2) + "\n").encode())


def resumed(o: FederateOptions, run: checkpoint.Run, vector: Vector, server: Server) -> list[Round]:
    """The rounds that a run has behind it; the model gets their weights.

    Raises:
        ValueError: for other options than those of the checkpoint.
    """
    if run.checkpoint is None:
        return []
    facts, tensors = checkpoint.read(run.checkpoint)
    was, now = facts.get("options", {}), _options(o)
    free = {*FREE, *(() if o.epsilon is not None else ("rounds",))}
    if differs := [k for k in now if k not in free and was.get(k) != now[k]]:
        said = "; ".join(f"{k} was {was.get(k)!r} and is now {now[k]!r}" for k in differs[:4])
        raise ValueError(f"cannot resume from {run.checkpoint}: {said}")
    if len(tensors["weights"]) != vector.size:
        raise ValueError(
            f"{run.checkpoint} holds {len(tensors['weights'])} numbers, and the model trains {vector.size}"
        )
    vector.write(tensors["weights"].numpy())
    return [Round(**row) for row in facts["rounds"]]


def _options(o: FederateOptions) -> dict[str, Any]:
    values = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(o).items()}
    return json.loads(json.dumps(values))
