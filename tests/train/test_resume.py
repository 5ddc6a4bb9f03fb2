"""N steps = k + resume + (N - k) through `train`, with all at once: a signal within an epoch, a mixture, worker
threads, accumulation, dropout, the mean of the weights, evaluations; twice in a row."""

import os
import signal
from typing import Any

import pytest
import torch

from anyformer.data import text
from anyformer.train import train
from anyformer.train.progress import Screen
from tests.later import later
from tests.train.launched import files, rows, same

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A text of 31 windows and one of 15 or so documents, each gone through several times within the run."""
    home, words = tmp_path_factory.mktemp("data"), text.read()
    (home / "a.txt").write_text(words[:560])
    lines = (f'{{"text": "{words[i : i + 40].encode().hex()}"}}\n' for i in range(9000, 9700, 40))
    (home / "b.jsonl").write_text("".join(lines))
    given: dict[str, Any] = {"size": "tiny", "tokenizer": "bytes", "context": 16, "batch": 3, "accumulate": 2}
    given |= {"data": {str(home / "a.txt"): 0.6, str(home / "b.jsonl"): 0.4}, "workers": 2, "ema": 0.9, "lr": 3e-3}
    given |= {
        "overrides": {"dropout": 0.1, "attention_dropout": 0.1},
        "label_smoothing": 0.1,
        "warmup": 3,
        "log_every": 1,
    }
    return {**given, "steps": 17, "save_every": 0, "eval_every": 5, "keep_last": 9}


@pytest.mark.parametrize(
    ("order", "changes"),
    [
        *later(("epochs", {})),
        ("random", {"precision": "fp16", "activation_checkpointing": ["blocks.*"], "schedule": "wsd"}),
        ("epochs", {"chunked_loss": "on", "z_loss": 1e-3, "label_smoothing": 0.0}),
        *later(("packed", {"optimizer": "muon", "precision": "bf16", "patience": 50})),
    ],
)
def test_straight_is_the_same_as_interrupted_twice(order, changes, options, tmp_path, monkeypatch):
    given = {**options, **changes, "order": order, "quiet": True}
    straight = train("gpt", out=tmp_path / "straight", **given)
    told, at = Screen.on_steps, [4, 11]

    def interrupting(screen, row, speed, steps):
        told(screen, row, speed, steps)
        if at and row["step"] == at[0]:
            at.pop(0)
            os.kill(os.getpid(), [signal.SIGTERM, signal.SIGINT][len(at) % 2])

    monkeypatch.setattr(Screen, "on_steps", interrupting)
    for step, resume in ((5, False), (12, True)):  # the signal comes while a step is shown: the next one is finished
        ended = train("gpt", out=tmp_path / "again", resume=resume, **{**given, "workers": step % 4})
        assert ended.stopped and ended.steps == step and ended.sample == ""
    done = train("gpt", out=tmp_path / "again", resume="auto", **given)
    assert not done.stopped and done.steps == 17 and not at
    assert same(tmp_path / "again", tmp_path / "straight") and "ema/model.safetensors" in files(tmp_path / "again")
    assert [row["step"] for row in rows(tmp_path / "again") if "loss" in row] == list(range(1, 18))
    for name in ("loss", "bits_per_byte", "sample"):
        assert getattr(done, name) == getattr(straight, name)
    assert (done.checkpoint / "training.json").read_text() == (straight.checkpoint / "training.json").read_text()
