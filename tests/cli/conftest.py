"""Tiny models on disk, as a user has them, and the command line called in this process."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.hub.text.tokenizer import Tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> Path:
    """A LLaMA with a byte tokenizer and a chat template."""
    model = af.build("llama", "tiny", vocab=257, context=512, seed=0)
    model.tokenizer = Tokenizer.bytes_level()
    model.tokenizer.template = TEMPLATE
    return _saved(model, tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    """A BERT with a byte tokenizer."""
    model = af.build("bert", "tiny", vocab=257, seed=0)
    model.tokenizer = Tokenizer.bytes_level()
    return _saved(model, tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def cli():
    """`cli("ls", "--json")` is (exit code, stdout, stderr)."""

    def run(*argv: object) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(a) for a in argv])
        return code, out.getvalue(), err.getvalue()

    return run


def _saved(model, folder: Path) -> Path:
    model.save(folder)
    return folder
