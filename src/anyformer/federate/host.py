"""The side of the clients: data that never leave, local training, clipping, masks. One process hosts one client or
several, one after another. `python -m anyformer.federate.host` reads what it needs as JSON from its standard input.

P trained numbers, n clients in a round.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.data.boxes import BoxSet
from anyformer.federate import masks, privacy, shamir
from anyformer.federate.grid import Grid, Saturated
from anyformer.federate.options import FederateOptions
from anyformer.federate.wire import Link, Message
from anyformer.train import master_weights, model_source, optim, random_state
from anyformer.train.finetune import goal_of, kind_of, letters, read_data, ready
from anyformer.train.objectives import counted
from anyformer.train.step_loss import Loss
from anyformer.train.tasks.base import Task

USERS = (ValueError, OSError, FloatingPointError, ImportError)
STAGES = ("keys", "shares", "train", "reveal")  # of a secure round; a plain one has `train` alone


class Vector:
    """The trained parameters of a model as one vector, float32 (P,), in the order of their paths."""

    def __init__(self, model: Any):
        self.types = master_weights.to_float32(model)  # those that the files have
        self.parameters = {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}
        shapes = json.dumps([[n, list(p.shape)] for n, p in self.parameters.items()])
        self.layout, self.size = (
            hashlib.sha256(shapes.encode()).hexdigest(),
            sum(map(torch.numel, self.parameters.values())),
        )

    def read(self) -> np.ndarray:
        """A copy of them."""
        return torch.cat([p.detach().flatten().cpu() for p in self.parameters.values()]).numpy()

    @torch.no_grad()
    def write(self, values: np.ndarray) -> None:
        """Sets them."""
        pieces = torch.tensor(values).split([p.numel() for p in self.parameters.values()])
        for p, piece in zip(self.parameters.values(), pieces, strict=True):
            p.copy_(piece.view_as(p))


@dataclass
class Client:
    """One client: its data, and what it holds during a round."""

    name: str
    path: Path
    data: Any = None
    goal: Task | None = None
    party: masks.Party | None = None


def local_training(lm: Any, goal: Task, o: FederateOptions, lr: float, number: int) -> float:
    """Trains the model in place for one round, and returns the mean loss; batches follow from the round's number.

    Norms with running statistics keep those of their file: they are not trained numbers.
    """
    rate = replace(o.of("x"), lr=lr).settings(1, lr, 0)
    plain = o.optimizer == "sgd"
    made = optim.Optimizer(torch.optim.SGD(optim.groups(lm, o.weight_decay), lr)) if plain else optim.make(lm, rate)
    learned = [p for p in lm.parameters() if p.requires_grad]
    device, criterion = learned[0].device, Loss(lm.train(), goal.objective, rate)
    for module in lm.modules():
        if getattr(module, "running_mean", None) is not None:
            module.eval()
    steps, total = o.local_steps or math.ceil(goal.size / o.batch), 0.0
    made.rate(lr)
    for step in range(number * steps, (number + 1) * steps):
        inputs = {k: v.to(device) for k, v in goal.rows.rows(step * o.batch, o.batch).items()}
        labels = inputs.pop("labels")
        count = getattr(goal.objective, "counted", counted)(labels).clamp(min=1)
        made.zero_grad()
        loss = criterion(inputs, labels, int(count) if count.ndim == 0 else count.to(device), 1.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, o.grad_clip)
        made.step()
        total += float(loss.detach())
    made.zero_grad()
    if not math.isfinite(total):
        raise FloatingPointError(f"the loss of its local steps is {total}; a lower lr may help")
    return total / steps


class Host:
    """Clients that share a process and a model."""

    def __init__(self, options: FederateOptions, clients: dict[str, Path]):
        self.o, self.clients = options, {name: Client(name, path) for name, path in clients.items()}
        self.lm = model_source.pretrained(options.model, options.tokenizer, options.overrides, options.ignore)
        self.vector: Vector | None = None
        self.weights, self.ready = np.zeros(0, np.float32), False

    def answer(self, message: Message) -> Message:
        """The answer to a message; `error` with the reason, `dropped` for a client that leaves the round on purpose."""
        f = message.facts
        try:
            if message.kind == "weights":
                self.weights = message.arrays["weights"]
                return Message("ok")
            client = self.clients[f["client"]]
            if self._leaves(client, message.kind, f.get("round", -1), bool(f.get("secure"))):
                return Message("dropped")
            return getattr(self, f"_{message.kind}")(client, f, message.arrays)
        except USERS as error:
            return Message("error", {"why": str(error), "fatal": isinstance(error, Saturated | ImportError)})

    def _leaves(self, client: Client, kind: str, number: int, secure: bool) -> bool:
        if not self.o.drop or kind not in STAGES:
            return False
        draw = np.random.default_rng([self.o.seed, zlib.crc32(client.name.encode()), number])
        at = STAGES[draw.integers(len(STAGES))] if secure else "train"
        return draw.random() < self.o.drop and STAGES.index(kind) >= STAGES.index(at)

    def _introduce(self, client: Client, f: dict[str, Any], _: Any) -> Message:
        """The facts that all clients must agree on; no example leaves."""
        mine = self.o.of(client.path)
        client.data = read_data(mine)
        task, names, context, columns = kind_of(self.lm, client.data, mine, least=1)
        said = sorted({c for text in letters(client.data) for c in text}) if task == "ctc" else []
        return Message("ok", {
            "task": task, "names": list(names), "context": context, "columns": list(columns), "said": said
        })  # fmt: skip

    def _prepare(self, client: Client, f: dict[str, Any], _: Any) -> Message:
        """The model that all have, and this client's examples for it."""
        mine, names, plan = self.o.of(client.path), tuple(f["names"]), (f["task"], f["context"], tuple(f["columns"]))
        if self.vector is None:
            self.lm = ready(self.lm, f["task"], names, mine, f["said"])[0]
            self.vector = Vector(self.lm)
        if isinstance(client.data, BoxSet):
            places = torch.tensor([names.index(name) for name in client.data.names])
            pictures = tuple(replace(p, classes=places[p.classes]) for p in client.data.pictures)
            client.data = replace(client.data, names=names, pictures=pictures)
        client.goal = goal_of(self.lm, plan[0], names, plan[1], plan[2], client.data, mine)
        return Message("ok", {
            "examples": client.goal.size, "held_out": sum(client.goal.facts["held_out"]), "unit": client.goal.unit,
            "layout": self.vector.layout, "numbers": self.vector.size,
        })  # fmt: skip

    def _measure(self, client: Client, f: dict[str, Any], _: Any) -> Message:
        assert client.goal is not None and self.vector is not None
        self.vector.write(self.weights)
        return Message("ok", {"measure": float(client.goal.measure(self.lm.eval(), self.o.batch))})

    def _train(self, client: Client, f: dict[str, Any], arrays: dict[str, np.ndarray]) -> Message:
        """The update, clipped where that is asked for; in a secure round its words under masks."""
        assert client.goal is not None and self.vector is not None
        self.vector.write(self.weights)
        random_state.seed_all(zlib.crc32(f"{self.o.seed} {client.name} {f['round']}".encode()))
        loss = local_training(self.lm, client.goal, self.o, f["lr"], f["round"])
        update, cut = self.vector.read() - self.weights, False
        if self.o.clip is not None:
            update, cut = privacy.clipped(update, self.o.clip)
        facts: dict[str, Any] = {"examples": client.goal.size}
        facts |= {} if self.o.blind else {"loss": loss, "clipped": cut}
        if not f.get("secure"):
            return Message("ok", facts, {"update": update.astype("<f4")})
        assert client.party is not None
        words, facts["saturated"] = Grid(**f["grid"]).words(update * f["share"])
        sealed = {int(v): bytes(text) for v, text in zip(f["places"], arrays["sealed"], strict=True)}
        return Message("ok", facts, {"words": client.party.masked(words, sealed)})

    def _keys(self, client: Client, f: dict[str, Any], _: Any) -> Message:
        client.party = masks.Party(f["place"], f["tag"].encode())
        return Message("ok", {}, {"public": _row(client.party.public())})

    def _shares(self, client: Client, f: dict[str, Any], arrays: dict[str, np.ndarray]) -> Message:
        assert client.party is not None
        publics = {int(v): bytes(key) for v, key in zip(f["places"], arrays["publics"], strict=True)}
        made = client.party.shares(publics, f["threshold"])
        return Message("ok", {"places": list(made)}, {"sealed": np.stack([_row(text) for text in made.values()])})

    def _reveal(self, client: Client, f: dict[str, Any], _: Any) -> Message:
        assert client.party is not None
        made = client.party.reveal(set(f["there"]), set(f["gone"]))
        assert all(len(share) == shamir.SHARE for share in made.values())
        return Message("ok", {"places": list(made)}, {"shares": np.stack([_row(share) for share in made.values()])})


def _row(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def main() -> None:
    """Joins the server, and answers it until the connection ends."""
    given = json.loads(sys.stdin.read())
    torch.set_num_threads(given["threads"])
    sock = socket.create_connection(("127.0.0.1", given["port"]))
    if given["certificate"]:
        from anyformer.federate.tls import client_side

        sock = client_side(given["certificate"]).wrap_socket(sock, server_hostname="127.0.0.1")
    link = Link(sock, 1 << 40)  # the server is trusted with sizes
    host = Host(FederateOptions(**given["options"]), {name: Path(path) for name, path in given["clients"].items()})
    link.send(Message("hello", {"token": given["token"], "clients": list(given["clients"])}))
    with contextlib.suppress(ConnectionError):  # the server has gone: so does this process
        while True:
            link.send(host.answer(link.receive()))
    os._exit(0)  # no destructors of models: the process only answered


if __name__ == "__main__":
    main()
