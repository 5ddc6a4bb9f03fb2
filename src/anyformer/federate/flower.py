"""The same server and clients as an app of Flower (Beutel et al., 2020; arXiv:2007.14390), on machines of its grid.

```python
options = FederateOptions("minilm", clients="hospitals", rounds=10)
client = client_app(options)        # the components that pyproject.toml names for `flwr run`
server = server_app(options)
```
A node's data is its `data` (`flower-supernode --node-config 'data="/srv/mine.csv"'`), else the client of its
`partition-id` in the folder. Flower may handle each message in a new process, so each holds the plan and the weights;
the keys of secure sums live in one process, so they are not for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.federate.federate import listed, model_of, play
from anyformer.federate.host import Host
from anyformer.federate.options import FederateOptions
from anyformer.federate.processes import Answer
from anyformer.federate.wire import DTYPES, Lied, Message

TYPES = {"introduce": "query", "prepare": "query", "train": "train", "measure": "evaluate"}


def needs() -> Any:
    """Flower's modules of messages.

    Raises:
        ImportError: naming what to install.
    """
    try:
        from flwr import app
    except ImportError:
        raise ImportError("Flower is missing: pip install 'anyformer[flower]'") from None
    return app


def client_app(options: FederateOptions) -> Any:
    """The ClientApp."""
    app = needs()
    from flwr.clientapp import ClientApp

    made, hosts = ClientApp(), dict[Path, Host]()

    def answer(message: Any, context: Any) -> Any:
        path, m = _data(options, context.node_config), _read(message.content)
        if path not in hosts:
            hosts[path] = Host(options, {"own": path})
        host = hosts[path]
        plan, weights = m.facts.pop("plan", None), m.arrays.pop("weights", None)
        if plan is not None and host.vector is None:  # a new process
            for before in (Message("introduce"), Message("prepare", plan)):
                host.answer(Message(before.kind, {**before.facts, "client": "own"}))
        if weights is not None:
            host.answer(Message("weights", {}, {"weights": weights}))
        said = host.answer(Message(m.kind, {**m.facts, "client": "own"}, m.arrays))
        return app.Message(_written(said), reply_to=message)

    for register in (made.query, made.train, made.evaluate):
        register()(answer)
    return made


def server_app(options: FederateOptions) -> Any:
    """The ServerApp: the rounds of `federate` with the nodes that are connected when it starts.

    Raises:
        ValueError: for secure sums.
    """
    needs()
    from flwr.serverapp import ServerApp

    if options.secure:
        raise ValueError(
            "secure sums keep their keys in one process, which Flower does not promise; leave --secure out"
        )
    made = ServerApp()

    @made.main()
    def main(grid: Any, context: Any) -> None:
        transport = Nodes(grid, options.timeout)
        play(options, model_of(options), transport, list(transport.nodes))

    return made


class Nodes:
    """The nodes of a grid as a `Transport`. Bytes are those of arrays and facts."""

    def __init__(self, grid: Any, timeout: float):
        self.grid, self.timeout, self.sent, self.received = grid, timeout, 0, 0
        self.nodes = {f"node-{number}": number for number in sorted(grid.get_node_ids())}
        self.plan: dict[str, Any] | None = None
        self.weights: dict[str, np.ndarray] = {}

    def ask(self, messages: Mapping[str, Message]) -> dict[str, Answer]:
        """See `processes.Transport`."""
        app, asked = needs(), []
        for name, m in messages.items():
            self.plan = m.facts if m.kind == "prepare" else self.plan
            facts = m.facts if self.plan is None else {**m.facts, "plan": self.plan}
            content = _written(Message(m.kind, facts, {**m.arrays, **self.weights}))
            self.sent += _bytes(content)
            asked.append(app.Message(content, dst_node_id=self.nodes[name], message_type=TYPES[m.kind]))
        answers: dict[str, Answer] = {name: ConnectionError(f"no answer in {self.timeout:g} s") for name in messages}
        names = {number: name for name, number in self.nodes.items()}
        for reply in self.grid.send_and_receive(asked, timeout=self.timeout):
            name = names[reply.metadata.src_node_id]
            try:
                if reply.has_error():
                    raise ConnectionError(f"Flower says {reply.error.reason}")
                self.received += _bytes(reply.content)
                answers[name] = _read(reply.content)
            except (OSError, Lied) as error:
                answers[name] = error
        return answers

    def broadcast(self, message: Message) -> None:
        """Kept: the next messages take it along."""
        self.weights = dict(message.arrays)

    def allow(self, most: int) -> None:
        """Nothing: Flower limits its messages."""


def _data(options: FederateOptions, node: Mapping[str, Any]) -> Path:
    if "data" in node:
        return Path(str(node["data"])).expanduser()
    paths = list(listed(Path(options.clients).expanduser()).values())
    return paths[int(node["partition-id"]) % len(paths)]


def _written(m: Message) -> Any:
    app = needs()
    arrays = {
        name: app.Array(dtype=a.dtype.str, shape=tuple(a.shape), stype="bytes", data=a.tobytes())
        for name, a in m.arrays.items()
    }
    facts = app.ConfigRecord({"kind": m.kind, "facts": json.dumps(m.facts)})
    return app.RecordDict({"facts": facts, "arrays": app.ArrayRecord(arrays)})


def _read(content: Any) -> Message:
    try:
        facts = json.loads(content["facts"]["facts"])
        for name, a in content["arrays"].items():
            if a.dtype not in DTYPES:
                raise Lied(f"{name!r} has the type {a.dtype!r}; types are {', '.join(DTYPES)}")
        arrays = {n: np.frombuffer(a.data, a.dtype).reshape(a.shape) for n, a in content["arrays"].items()}
        return Message(content["facts"]["kind"], facts, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise error if isinstance(error, Lied) else Lied(f"its message has another form ({error})") from None


def _bytes(content: Any) -> int:
    return len(content["facts"]["facts"]) + sum(len(a.data) for a in content["arrays"].values())
