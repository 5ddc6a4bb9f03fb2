"""The Flower app: its real messages and apps, nodes in this process, the same numbers as without it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.federate.options import FederateOptions
from anyformer.train import checkpoint
from tests.federate.conftest import joined

QUICK: dict[str, Any] = {"rounds": 2, "lr": 1e-2, "device": "cpu", "batch": 8, "local_steps": 2, "quiet": True}


@pytest.fixture
def flwr() -> Any:
    made = pytest.importorskip("flwr.app", reason="Flower (flwr) is not installed")
    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity  # what Flower's own processes set
    identity.task_id, identity.run_id, identity.node_id = 1, 1, 1
    return made


class Grid:
    """Flower's grid without a network: the nodes' ClientApps are called with Flower's own messages.

    `forgets`: each message meets a new process, as in a deployment.
    """

    def __init__(self, app: Any, made: Any, count: int, forgets: bool, silent: int | None = None):
        self.app, self.made, self.count, self.silent = app, made, count, silent
        self.clients = {} if forgets else {i: made() for i in range(count)}

    def get_node_ids(self) -> list[int]:
        return [100 + i for i in range(self.count)]

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        replies = []
        for m in messages:
            i = m.metadata.dst_node_id - 100
            context = self.app.Context(1, 100 + i, {"partition-id": i}, self.app.RecordDict(), {})
            if m.metadata.message_type == "train" and i == self.silent:
                continue
            replies.append((self.clients.get(i) or self.made())(m, context))
        return replies


@pytest.mark.parametrize("forgets", [False, True])
def test_the_flower_app_gives_the_same_weights(
    forgets: bool, flwr: Any, bert: str, clients: Path, tmp_path: Path
) -> None:
    from anyformer.federate.flower import client_app, server_app

    o = FederateOptions(bert, clients=clients, out=tmp_path / "run", **QUICK)
    grid = Grid(flwr, lambda: client_app(o), 3, forgets)
    context = flwr.Context(1, 0, {}, flwr.RecordDict(), {})
    server_app(o)(grid, context)
    names = ["node-100", "node-101", "node-102"]
    server = joined(o)[0]
    for number in (1, 2):
        server.round(number)
        server.publish(server.weights)
    facts, tensors = checkpoint.read(tmp_path / "run" / "step-000002")
    assert facts["rounds"][1]["answered"] == names and facts["rounds"][1]["up"] > 3 * 4 * 7234
    # the seeds of local training come from the names of clients, which are others: here nothing draws
    assert np.abs(tensors["weights"].numpy() - server.weights).max() < 0.05
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_a_node_that_is_silent_drops_and_secure_sums_are_refused(
    flwr: Any, bert: str, clients: Path, tmp_path: Path
) -> None:
    from anyformer.federate.flower import client_app, server_app

    o = FederateOptions(bert, clients=clients, out=tmp_path / "run", timeout=5.0, **QUICK)
    grid = Grid(flwr, lambda: client_app(o), 3, False, silent=1)
    server_app(o)(grid, flwr.Context(1, 0, {}, flwr.RecordDict(), {}))
    facts = checkpoint.read(tmp_path / "run" / "step-000002")[0]
    assert facts["rounds"][1]["dropped"] == {"node-101": "gone: no answer in 5 s"}
    with pytest.raises(ValueError, match="leave --secure out"):
        server_app(FederateOptions(bert, clients=clients, secure=True))


def test_without_flower_the_reason_is_a_line(monkeypatch: pytest.MonkeyPatch, clients: Path) -> None:
    from anyformer.federate.flower import client_app

    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(ImportError, match=r"Flower is missing: pip install 'anyformer\[flower\]'"):
        client_app(FederateOptions("bert", clients=clients))
