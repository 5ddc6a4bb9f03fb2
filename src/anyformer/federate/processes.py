"""The clients as processes on this machine, each connected by TCP on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from anyformer.federate.options import FederateOptions
from anyformer.federate.wire import FACTS, Lied, Link, Message

Answer = Message | Exception


class Transport(Protocol):
    """The way of messages to the clients."""

    @property
    def sent(self) -> int:
        """Bytes so far."""

    @property
    def received(self) -> int:
        """Bytes so far."""

    def ask(self, messages: Mapping[str, Message]) -> dict[str, Answer]:
        """The answers, by client; of one that is gone or lies about its message an OSError or `Lied`."""

    def broadcast(self, message: Message) -> None:
        """A message for all clients."""

    def allow(self, most: int) -> None:
        """Sets the bytes of arrays that an answer may have."""


class Processes:
    """Processes that host the clients, started here, and ended with the `with` block.

    Raises:
        OSError: if none of them joins in time.
    """

    def __init__(self, o: FederateOptions, clients: Mapping[str, Path]):
        count = min(o.processes or len(clients), len(clients))
        self.o, names = o, list(clients)
        self.parts = [{name: str(clients[name].absolute()) for name in names[i::count]} for i in range(count)]
        self.links: list[Link] = []
        self.of: dict[str, Link] = {}  # by client
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        self.stack = contextlib.ExitStack()
        self.pool = self.stack.enter_context(ThreadPoolExecutor(len(self.parts)))
        self.said = self.stack.enter_context(tempfile.TemporaryFile())
        self.stack.callback(self._end)
        try:
            self._start()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.stack.close()

    @property
    def sent(self) -> int:
        return sum(link.sent for link in self.links)

    @property
    def received(self) -> int:
        return sum(link.received for link in self.links)

    def _start(self) -> None:
        certificate, context = "", None
        if self.o.tls:
            from anyformer.federate.tls import server_side

            context, certificate = server_side()
        door = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threads = max(1, (os.cpu_count() or 1) // len(self.parts))
        options = {n: str(v) if isinstance(v, Path) else v for n, v in dataclasses.asdict(self.o).items()}
        given = {"port": door.getsockname()[1], "certificate": certificate, "threads": threads, "options": options}
        tokens = [secrets.token_hex(16) for _ in self.parts]
        for token, part in zip(tokens, self.parts, strict=True):
            command = [sys.executable, "-m", "anyformer.federate.host"]
            made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self.said)
            self.started.append(made)
            assert made.stdin is not None
            with made.stdin as stdin:
                stdin.write(json.dumps({**given, "clients": part, "token": token}).encode())
        door.settimeout(0.5)
        until, absent = time.monotonic() + self.o.timeout, dict(zip(tokens, range(len(tokens)), strict=True))
        while any(self.started[i].poll() is None for i in absent.values()) and time.monotonic() < until:
            with contextlib.suppress(OSError, Lied):
                self._admit(door.accept()[0], absent, context)
        if not self.links:
            raise OSError(f"no client process joined: {self._last_words()}")

    def _admit(self, sock: socket.socket, absent: dict[str, int], context: Any) -> None:
        """Whoever knows a token is the process that was given it."""
        sock.settimeout(10.0)
        link = Link(sock if context is None else context.wrap_socket(sock, server_side=True), FACTS)
        place = absent.pop(str(link.receive().facts.get("token")), None)
        if place is None:
            link.close()
            return
        link.sock.settimeout(self.o.timeout)
        self.links.append(link)
        self.of |= dict.fromkeys(self.parts[place], link)

    def _last_words(self) -> str:
        """The end of what the processes wrote to their standard errors."""
        return (
            os.pread(self.said.fileno(), 1 << 16, max(0, os.fstat(self.said.fileno()).st_size - (1 << 16)))
            .decode(errors="replace")
            .strip()
            .splitlines()
            or ["no process said why"]
        )[-1]

    def allow(self, most: int) -> None:
        """See `Transport`."""
        for link in self.links:
            link.most = most

    def ask(self, messages: Mapping[str, Message]) -> dict[str, Answer]:
        """See `Transport`."""
        by_link: dict[Link | None, list[str]] = {}
        for name in messages:
            by_link.setdefault(self.of.get(name), []).append(name)
        done = self.pool.map(lambda item: self._in_turn(item[0], item[1], messages), by_link.items())
        answers = {name: answer for part in done for name, answer in part.items()}
        return {name: answers[name] for name in messages}

    def _in_turn(self, link: Link | None, names: list[str], messages: Mapping[str, Message]) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        for name in names:
            try:
                if link is None or link.sock.fileno() < 0:
                    raise ConnectionError("its process is gone")
                link.send(dataclasses.replace(messages[name], facts={**messages[name].facts, "client": name}))
                answers[name] = link.receive()
            except TimeoutError:
                answers[name] = ConnectionError(f"no answer in {self.o.timeout:g} s")
            except (OSError, Lied) as error:
                answers[name] = error if isinstance(error, Lied) else ConnectionError(f"{error}; {self._last_words()}")
            if isinstance(answers[name], Exception) and link is not None:  # what follows on this line is unknown
                link.close()
        return answers

    def broadcast(self, message: Message) -> None:
        """Sends it once to each process; one that is gone shows when it is asked."""
        first = {link: name for name, link in self.of.items()}
        self.ask(dict.fromkeys(first.values(), message))

    def _end(self) -> None:
        """Ends the connections, and the processes that this object started."""
        for link in self.links:
            link.close()
        for made in self.started:
            try:
                made.wait(5.0)
            except subprocess.TimeoutExpired:
                made.kill()
                made.wait()
