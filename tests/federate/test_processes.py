"""Clients as real processes, the command, what comes over the wire, killed clients, a killed server."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.federate import federate
from anyformer.federate.federate import listed
from anyformer.federate.host import Vector
from anyformer.federate.options import FederateOptions
from anyformer.federate.processes import Processes
from anyformer.federate.server import Server
from anyformer.federate.wire import FACTS, Lied, Link, Message
from anyformer.train import checkpoint, model_source
from anyformer.train.finetune import ready
from tests.federate.conftest import joined, reviews, write

pytestmark = pytest.mark.usefixtures("forked")

QUICK: dict[str, Any] = {"rounds": 2, "lr": 1e-2, "device": "cpu", "batch": 8, "local_steps": 2}
WORDS = ("--rounds", "2", "--lr", "1e-2", "--device", "cpu", "--batch", "8", "--local-steps", "2")


def test_the_command_with_secure_sums_and_encryption(
    bert: str, clients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography", reason="secure sums need cryptography")
    out = tmp_path / "run"
    assert main(["federate", bert, "--clients", str(clients), "--secure", "--tls", "--out", str(out), *WORDS]) == 0
    said = capsys.readouterr().out
    assert "3 clients, 108 examples" in said and "round 2; 3 of 3 clients; held-out" in said and "up 0.0" in said
    made = json.loads((out / "federated.json").read_text())
    assert [row["number"] for row in made["rounds"]] == [0, 1, 2] and not made["out"]
    assert all(row["up"] > 3 * 4 * 7234 and row["down"] > 3 * 4 * 7234 for row in made["rounds"][1:])
    server = joined(FederateOptions(bert, clients=clients, **QUICK))[0]
    for number in (1, 2):
        server.round(number)
        server.publish(server.weights)
    weights = checkpoint.read(out / "step-000002")[1]["weights"].numpy()
    assert np.abs(weights - server.weights).max() < 1e-5  # processes, masks and TLS change nothing but the grid
    opened = af.load(out / "model")
    assert opened.config.classes == 2 and not [n for n, _ in opened.named_parameters() if "lora" in n]
    with pytest.raises(ValueError, match="holds a run"):
        federate(bert, clients=clients, out=out, quiet=True, **QUICK)
    with pytest.raises(ValueError, match=r"cannot resume from .*: lr was 0\.01 and is now 0\.02"):
        federate(bert, clients=clients, out=out, quiet=True, resume=True, secure=True, **{**QUICK, "lr": 0.02})


def test_a_client_that_is_killed_is_named_and_the_rounds_go_on(bert: str, clients: Path) -> None:
    o = FederateOptions(bert, clients=clients, **QUICK)
    with Processes(o, listed(clients)) as transport:
        server = Server(o, transport, listed(clients))
        plan = server.introduce()
        lm = model_source.pretrained(bert, None, None, [])
        vector = Vector(ready(lm, plan["task"], tuple(plan["names"]), o.of("x"), plan["said"])[0])
        transport.allow(16 * vector.size)
        server.prepare(vector.layout, vector.size)
        server.publish(vector.read())
        transport.started[0].send_signal(signal.SIGSTOP)  # it has the question, and never answers
        threading.Timer(0.5, transport.started[0].kill).start()
        row = server.round(1)
        assert row.answered == ["film", "song"] and row.dropped["book"].startswith("gone: ")
        assert server.round(2).drawn == ["film", "song"] and list(server.out) == ["book"]
        started = transport.started
    assert all(process.poll() is not None for process in started)


@pytest.mark.slow  # it starts processes again and again
def test_a_killed_server_resumes_behind_the_last_round(bert: str, clients: Path, tmp_path: Path) -> None:
    out, marker = tmp_path / "run", f"FEDERATE_TEST={tmp_path.name}"
    command = [sys.executable, "-m", "anyformer", "federate", bert, "--clients", str(clients), "--processes", "1"]
    command += ["--out", str(out), *WORDS[2:], "--rounds", "40"]
    process = subprocess.Popen(command, env={**os.environ, "FEDERATE_TEST": tmp_path.name}, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (out / "step-000002").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    last = checkpoint.latest(out)
    assert last is not None
    done = int(last.name[5:])
    assert 2 <= done < 40
    while _left(marker) and time.monotonic() < until:  # the clients see that nobody asks any more
        time.sleep(0.05)
    assert not _left(marker)
    # the schedule depends on the number of rounds: 40, of which two more are run here
    o = {**QUICK, "rounds": 40}
    server = joined(FederateOptions(bert, clients=clients, **o))[0]
    for number in range(1, done + 3):
        if number == done + 1:
            saved = checkpoint.read(last)[1]["weights"].numpy()
            assert np.abs(saved - server.weights).max() < 1e-5
        server.round(number)
        server.publish(server.weights)
    process = subprocess.Popen([*command, "--resume", "true"], stdout=subprocess.DEVNULL)
    while not (out / f"step-{done + 2:06d}").exists() and process.poll() is None and time.monotonic() < until + 60:
        time.sleep(0.005)
    weights = checkpoint.read(out / f"step-{done + 2:06d}")[1]["weights"].numpy()
    process.kill()
    process.wait()
    assert np.abs(weights - server.weights).max() < 1e-5


def _left(marker: str) -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in place.read_bytes():
                found.append(place.parent.name)
        except OSError:
            continue
    return found


def _pair(most: int = 1000) -> tuple[socket.socket, Link]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5.0)
    return ours, Link(theirs, most)


def _facts(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _array(dtype: Any, shape: Any) -> bytes:
    return _facts(json.dumps({"kind": "ok", "arrays": [["update", dtype, shape]]}).encode())


@pytest.mark.parametrize(("sent", "said"), [
    (struct.pack("<I", FACTS + 1), "announces .* bytes of facts"),
    (_facts(b"{"), "no facts of the right form"), (_facts(b"[]"), "no facts of the right form"),
    (_facts(b'{"kind": "ok"}'), "no facts of the right form"), (_facts(b"\xff\xfe"), "no facts of the right form"),
    (_array("<f4", [10**12]), r"of shape \[1000000000000\] has 4,000,000,000,000 bytes, and 1,000 are allowed"),
    (_array("<f4", [-1]), "announces type '<f4' and shape"), (_array("<f8", [1]), "announces type '<f8'"),
    (_array("O", [1]), "announces type 'O'"), (_array("<f4", [1.5]), "announces type"),
    (_array("<f4", 3), "no facts of the right form"), (_array("<f4", [10**400]), "are allowed"),
])  # fmt: skip
def test_a_message_that_lies_about_its_size_or_form_is_refused_before_it_is_stored(sent: bytes, said: str) -> None:
    ours, link = _pair()
    ours.sendall(sent)
    with pytest.raises(Lied, match=said):
        link.receive()


def test_an_end_in_the_middle_of_a_message_is_seen() -> None:
    ours, link = _pair()
    ours.sendall(_array("<f4", [4]) + b"\0" * 7)
    ours.close()
    with pytest.raises(ConnectionError, match="in the middle of a message"):
        link.receive()


def test_messages_arrive_as_they_were_sent_and_are_counted() -> None:
    ours, link = _pair(10_000)
    other, values = Link(ours, 0), np.arange(12, dtype="<f4").reshape(3, 4)
    count = other.send(Message("train", {"round": 3}, {"a": values, "b": np.arange(3, dtype="<u8")}))
    came = link.receive()
    assert (came.kind, came.facts) == ("train", {"round": 3}) and (came.arrays["a"] == values).all()
    assert came.arrays["b"].dtype == np.dtype("<u8") and other.sent == link.received == count


def test_a_stranger_without_the_token_is_not_let_in(bert: str, clients: Path) -> None:
    processes = Processes(FederateOptions(bert, clients=clients, **QUICK), listed(clients))
    for token, count in (("guess", 0), ("secret", 1)):
        ours, theirs = socket.socketpair()
        Link(ours, 0).send(Message("hello", {"token": token}))
        processes._admit(theirs, {"secret": 0}, None)
        assert len(processes.links) == count


@pytest.mark.parametrize(("more", "said"), [
    ({"rounds": 0}, "rounds must be at least 1"), ({"epsilon": 0.0}, "epsilon must be above 0"),
    ({"sample": 0.0}, "sample is a probability"), ({"drop": 1.5}, "drop is a probability"),
    ({"threshold": 2}, "add --secure"), ({"schedule": "x"}, "schedule must be one of"),
    ({"method": "full", "rank": 4}, "rank=4 is for adapters"), ({"batch": 0}, "batch must be at least 1"),
    ({"limit": -1.0}, "limit must be above 0"), ({"clip": float("inf")}, "clip must be above 0"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(more: dict[str, Any], said: str, clients: Path) -> None:
    with pytest.raises(ValueError, match=said):
        FederateOptions("bert", **{"clients": clients, **more})


def test_folders_that_are_no_federation(bert: str, tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    for count in (0, 1):
        with pytest.raises(ValueError, match=rf"holds {count} clients?, and a federation needs two.*finetune"):
            federate(bert, clients=tmp_path / "clients", out=tmp_path / "run", **QUICK)
        write(tmp_path / "clients" / "only.csv", reviews("film"))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        federate(bert, clients=tmp_path / "none", out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_an_epsilon_that_cannot_be_ends_the_command_before_the_first_round(
    bert: str, clients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--clients", str(clients), "--out", str(tmp_path / "run"), "--processes", "1", "--epsilon", "0.001")
    assert main(["federate", bert, *words, *WORDS]) == 2
    assert "The nearest possible is epsilon=" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("step-*"))
    assert torch.get_num_threads() == 1
