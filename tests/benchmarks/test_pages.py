"""The commands of docs/long-context.md: they stand there as they are measured, and every one works."""

import re
import shlex
import sys

import pytest
import torch

from anyformer.cli import main
from anyformer.data import sources
from anyformer.train import plots
from benchmarks import pages

torch.set_num_threads(1)


def test_the_docs_show_the_commands_that_are_measured():
    shown = re.findall(r"^anyformer train .*$", pages.DOCS.read_text(), re.M)
    assert shown == [shown_.command for shown_ in pages.ALL]
    assert len({s.folder for s in pages.ALL}) == len(pages.ALL)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(sources.text("pydoc")[:15_000])
    return path


QUICK = ("gpt", "bert")


@pytest.mark.parametrize(
    "shown",
    [pytest.param(s, id=s.folder, marks=[] if s.folder in QUICK else pytest.mark.slow) for s in pages.ALL],
)
def test_a_command_trains_and_samples(shown, book, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYFORMER_TOKENS", str(book.parent / "tokens"))
    monkeypatch.setattr(plots, "write", lambda *_: None)  # figures have their own test, and take half of the time
    monkeypatch.setattr(
        sys.modules["anyformer.train.train"], "SAMPLE", 65
    )  # one more than a hashed chunk of Reformer's has
    arguments = shlex.split(shown.command)[1:]
    less = ["--data", str(book), "--steps", "2", "--batch", "1", "--warmup", "1"]
    assert main([*arguments, *less]) == 0
    said = capsys.readouterr().out
    assert re.search(r"held-out: [\d.]+ (bits per byte|nats a label) \(\w+: [\d.]+\)\nmodel: runs/", said)
    assert ("\nThe " in said) == (shown in pages.DECODERS)


def test_every_row_has_a_result_of_the_command_that_is_shown():
    assert [shown.folder for shown in pages.ALL if pages.known(shown) is None] == []
