"""The commands of docs/retrieval.md, run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from anyformer.cli import main

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "retrieval.md").read_text(encoding="utf-8")


def test_the_commands_and_the_python_of_the_page_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but those that wait for a model to write."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for name in ("serving.md", "command-line.md"):
        shutil.copy(DOCS / name, tmp_path / "docs" / name)
    block = re.findall(r"```sh\n(.*?)```", PAGE, re.S)[0]
    commands = [shlex.split(line, comments=True)[1:] for line in block.strip().split("\n")]
    assert [words[0] for words in commands] == ["index", "ask", "ask", "ask", "chat"]
    for words in commands:
        if "smollm2" not in words:
            assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 files read" in said and "0 lost" in said and "BM25" in said and "serving.md:" in said
    exec(compile(re.findall(r"```python\n(.*?)```", PAGE, re.S)[0], "docs/retrieval.md", "exec"), {})
    assert re.search(r"0[.]\d{3} (serving|command-line)[.]md:\d+", capsys.readouterr().out)
