"""What docs/federated.md shows runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from anyformer.cli import main

DOC = (Path(__file__).parents[2] / "docs" / "federated.md").read_text()


@pytest.mark.slow  # it starts processes again and again
def test_the_commands_run(
    bert: str, clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography", reason="secure sums need cryptography")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hospitals").symlink_to(clients)
    (tmp_path / "small").symlink_to(bert)
    block = re.findall(r"```sh\n(.*?)```", DOC, re.S)[0].replace("minilm", "small")
    few = ["--rounds", "1", "--local-steps", "1", "--processes", "1", "--device", "cpu"]
    for line in block.strip().splitlines():
        words = shlex.split(line, comments=True)[1:]
        assert main([*words, *(few if words[0] == "federate" else [])]) == 0, line
    said = capsys.readouterr().out
    assert "epsilon=" in said and "Poisson" in said and said.count("model: ") == 4


def test_the_python_runs(clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr.app", reason="Flower (flwr) is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": __name__}
    code = re.findall(r"```python\n(.*?)```", DOC, re.S)[0]
    exec(compile(code, "docs/federated.md", "exec", dont_inherit=True), names)
    assert type(names["client"]).__name__ == "ClientApp" and type(names["server"]).__name__ == "ServerApp"
