"""A checkpoint is read once when a run goes on, and what the run began from not again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.hub.formats.safetensors import SafeTensors
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import Settings, finetune, fit, objectives, train

torch.set_num_threads(1)
SMALL: dict[str, Any] = {"context": 16, "batch": 2, "quiet": True, "warmup": 0, "eval_every": 0}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A text, texts as rows, and a model in bfloat16."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 200)
    (tmp_path / "a.jsonl").write_text('{"text": "the cat sat on the mat"}\n' * 20)
    model = af.build("gpt", "tiny", vocab=257, seed=0)
    model.tokenizer = Tokenizer.bytes_level()
    model.to(torch.bfloat16).save(tmp_path / "bfloat16")
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file of tensors was opened."""
    counts: Counter[Path] = Counter()
    opened = SafeTensors.__init__

    def counting(self: SafeTensors, path: Any) -> None:
        counts[Path(path).resolve()] += 1
        opened(self, path)

    monkeypatch.setattr(SafeTensors, "__init__", counting)
    return counts


RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a new model": (train, {"model": "gpt", "size": "tiny", "tokenizer": "bytes", "data": "a.txt"}),
    "with a mean": (train, {"model": "gpt", "size": "tiny", "tokenizer": "bytes", "data": "a.txt", "ema": 0.5}),
    "from a directory": (train, {"model": "bfloat16", "data": "a.txt"}),
    "from a directory, with a mean": (train, {"model": "bfloat16", "data": "a.txt", "ema": 0.5}),
    "fine-tuned in full": (finetune, {"model": "bfloat16", "data": "a.jsonl", "method": "full"}),
    "adapters": (finetune, {"model": "bfloat16", "data": "a.jsonl", "method": "lora"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_each_file_of_a_checkpoint_is_read_once(name: str, home: Path, reads: Counter[Path]) -> None:
    run, options = RUNS[name]
    options = {**SMALL, **options, "data": str(home / options["data"]), "out": home / "run"}
    if options["model"] == "bfloat16":
        options["model"] = str(home / "bfloat16")
    straight = run(**options, steps=4, save_every=2, keep_last=9)
    reads.clear()
    resumed = run(
        **{**options, "out": home / "other"}, steps=4, save_every=2, keep_last=9, resume=str(home / "run/step-000002")
    )
    begun = {path.relative_to(home): n for path, n in reads.items() if (home / "run") in path.parents}
    assert set(begun.values()) == {1} and Path("run/step-000002/training.safetensors") in begun
    assert ("ema" in options) == (Path("run/step-000002/ema/model.safetensors") in begun)
    if run is train:
        assert not [path for path in reads if (home / "bfloat16") in path.parents]
    assert all(torch.equal(a, b) for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True))
    for file in ("training.safetensors", *(["ema/model.safetensors"] if "ema" in options else [])):
        assert (home / "run/step-000004" / file).read_bytes() == (home / "other/step-000004" / file).read_bytes()


def test_fit_reads_once_as_well(home: Path, reads: Counter[Path]) -> None:
    def batches(number: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(1, 128, (2, 9), generator=torch.Generator().manual_seed(number))
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}

    def go(steps: int, resume: bool) -> None:
        settings = Settings(steps, warmup=0, ema=0.5, schedule="constant")
        fit(af.build("gpt", "tiny", seed=0), batches, objectives.causal_lm, settings, home / "fit", resume=resume)

    go(2, False)
    reads.clear()
    go(3, True)
    files = ("model.safetensors", "training.safetensors", "ema/model.safetensors")
    assert reads == {(home / "fit/step-000002" / file).resolve(): 1 for file in files}
