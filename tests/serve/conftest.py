"""Tiny models on disk, and a server of them in its own process, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.hub.text.tokenizer import Tokenizer
from tests import forked

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def saved(folder: Path, page: str, template: str | None, **changes: Any) -> Path:
    """The folder of a tiny model that reads bytes."""
    model = af.build(page, "tiny", **{"vocab": 257, **changes}, seed=0)
    draw = torch.Generator().manual_seed(len(page))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "A_log" not in name:
                weight.normal_(std=0.3, generator=draw)
    model.tokenizer = Tokenizer.bytes_level()
    model.tokenizer.template = template
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder, a recurrent model, one whose rows cannot join, an encoder-decoder, an encoder and a model of sound."""
    base, made = tmp_path_factory.mktemp("served"), {}
    options: dict[str, dict[str, Any]] = {
        "llama": {"context": 256}, "mamba": {}, "compressive": {}, "t5": {"vocab": 257}, "bert": {"context": 64},
    }  # fmt: skip
    for page, changes in options.items():
        made[page] = saved(base / page, page, TEMPLATE if page == "llama" else None, **changes)
    (made["llama"] / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return made


class Process:
    """`anyformer serve` in a process of its own."""

    start: Callable[..., Any] = subprocess.Popen

    def __init__(self, *arguments: object, **environment: str):
        code = "import sys; from anyformer.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "serve", *map(str, arguments), "--port", "0"]
        path = os.pathsep.join([str(Path(af.__file__).parents[1]), *filter(None, sys.path)])
        self.process = self.start(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        )  # fmt: skip
        self.said: list[str] = []
        self.errors: list[str] = []
        assert self.process.stdout is not None and self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr, self.errors), daemon=True)
        self._reader.start()
        for line in self.process.stdout:
            self.said.append(line.strip())
            if line.startswith("anyformer serve: "):
                break
        assert self.said and self.said[-1].startswith("anyformer serve: "), "".join(self.errors)
        self.url = self.said[-1].removeprefix("anyformer serve: ")

    def _read(self, stream: Any, lines: list[str]) -> None:
        lines.extend(stream)

    def client(self, key: str = "none") -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def end(self, sign: int = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(sign)
        return self.process.wait(timeout=60)


@pytest.fixture(scope="session")
def process(request: pytest.FixtureRequest) -> Iterator[Callable[..., Process]]:
    """`process(…)` starts one, in `make test` as a fork; all end with the tests."""
    if "not slow" in request.config.option.markexpr:
        Process.start = forked.Popen
    started: list[Process] = []

    def start(*arguments: object, **environment: str) -> Process:
        started.append(Process(*arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture(scope="session")
def server(process: Callable[..., Process], folders: dict[str, Path]) -> Process:
    return process(*folders.values(), "--seconds", 60, "--body", 200_000)
