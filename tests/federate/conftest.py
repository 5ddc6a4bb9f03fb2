"""Three clients of film reviews, a small encoder, and a transport without processes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.federate.federate import listed
from anyformer.federate.host import Host, Vector
from anyformer.federate.options import FederateOptions
from anyformer.federate.server import Server
from anyformer.federate.wire import Message
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import model_source
from anyformer.train.finetune import ready

torch.set_num_threads(1)
GOOD, BAD = ("fine", "lovely", "great", "warm"), ("poor", "dull", "awful", "cold")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def reviews(name: str, count: int = 40) -> list[dict[str, str]]:
    """Good and bad reviews in turn."""
    lines = [(f"a {(GOOD, BAD)[i % 2][i // 2 % 4]} {name} {i}", ("good", "bad")[i % 2]) for i in range(count)]
    return [{"text": text, "label": label} for text, label in lines]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT whose tokens are bytes."""
    made = af.build("bert", "tiny", vocab=257, seed=0)
    made.tokenizer = Tokenizer.bytes_level()
    made.save(folder := tmp_path_factory.mktemp("federate") / "bert")
    return str(folder)


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three."""
    folder = tmp_path_factory.mktemp("clients")
    for name in ("film", "book", "song"):
        write(folder / f"{name}.csv", reviews(name))
    return folder


class Here:
    """Clients in this process: each a host of its own. `change`: what a test makes of an answer."""

    def __init__(self, o: FederateOptions, clients: dict[str, Path]):
        self.hosts = {name: Host(o, {name: path}) for name, path in clients.items()}
        self.sent = self.received = 0
        self.seen: list[tuple[str, Message, Any]] = []
        self.change: Callable[[str, Message, Message], Any] = lambda name, asked, answer: answer

    def ask(self, messages: Mapping[str, Message]) -> dict[str, Any]:
        answers = {}
        for name, m in messages.items():
            answer = self.hosts[name].answer(Message(m.kind, {**m.facts, "client": name}, m.arrays))
            answers[name] = self.change(name, m, answer)
            self.seen.append((name, m, answers[name]))
        return answers

    def allow(self, most: int) -> None:
        assert most > 0

    def broadcast(self, message: Message) -> None:
        for host in self.hosts.values():
            host.answer(message)


def joined(o: FederateOptions, clients: Path | None = None, transport: Any = None) -> tuple[Server, Here, Any]:
    """A server whose clients are ready, their transport, and the server's model."""
    paths = listed(Path(clients or o.clients))
    here = transport or Here(o, paths)
    server = Server(o, here, here.hosts)
    plan = server.introduce()
    lm = model_source.pretrained(o.model, o.tokenizer, o.overrides, o.ignore)
    lm = ready(lm, plan["task"], tuple(plan["names"]), o.of("x"), plan["said"])[0]
    vector = Vector(lm)
    server.prepare(vector.layout, vector.size)
    server.publish(vector.read())
    return server, here, lm
