"""The processor of waveforms and the tokenizer of letters: the published numbers, files in and out, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer.hub.formats.guard import FileRefused
from anyformer.hub.processors import WaveProcessor, read_processor, write_processor
from anyformer.hub.text.tokenizer import Tokenizer

torch.set_num_threads(1)
FILE: dict[str, Any] = {
    "do_normalize": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
    "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False, "sampling_rate": 16000,
}  # fmt: skip
SOUNDS = [np.random.default_rng(n).standard_normal(n).astype(np.float32) * size + shift
          for n, size, shift in ((1, 0.1, 0), (1000, 1e-4, 0.2), (16000, 0.5, 0), (777, 0.3, -0.1))]  # fmt: skip
VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "'": 7, "L": 8, "Ö": 9}


def read(said: Any, folder: Path, **options: Any) -> WaveProcessor:
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    found = read_processor(folder, takes=("input_values",), **options)
    assert isinstance(found, WaveProcessor)
    return found


@pytest.mark.parametrize("normalise", [True, False])
def test_samples_are_those_of_transformers(normalise: bool) -> None:
    theirs = pytest.importorskip("transformers").Wav2Vec2FeatureExtractor(do_normalize=normalise)
    ours = WaveProcessor(normalise=normalise)
    made = ours([(samples, 16000) for samples in SOUNDS])
    expected = theirs(SOUNDS, sampling_rate=16000, padding=True, return_attention_mask=True, return_tensors="pt")
    torch.testing.assert_close(made["input_values"], expected["input_values"].float(), rtol=0, atol=1e-5)
    assert torch.equal(made["attention_mask"], expected["attention_mask"].long())
    assert ours((SOUNDS[0], 16000)).keys() == {"input_values"}


def test_files_are_read_written_and_refused(tmp_path: Path) -> None:
    made = read(FILE, tmp_path)
    assert made == WaveProcessor() and len(made.origin.lines) == len(FILE)
    write_processor(tmp_path, made)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == FILE
    for change, problem in (
        ({"padding_side": "left"}, "padding_side"), ({"feature_size": 2}, "feature_size"),
        ({"loudness": 1}, "unknown config keys: loudness=1"), ({"sampling_rate": "x"}, "sampling_rate"),
        ({"feature_extractor_type": "Other"}, "feature_extractor_type"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            read({**FILE, **change}, tmp_path)


@pytest.mark.parametrize("lower", [False, True])
def test_letters_are_those_of_transformers(lower: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    theirs = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=lower)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Tokenizer.load(tmp_path / "theirs")
    for text in ("TELL ET", "tell et", "ÖL?  T", " E ", "TÖT'"):
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, group_tokens=False).replace("<unk>", "").strip()
    ours.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/vocab.json").read_text()) == VOCABULARY
    again = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "ours")
    assert again("TELL").input_ids == [6, 5, 8, 8] and Tokenizer.load(tmp_path / "ours").encode("TELL") == [6, 5, 8, 8]
    assert ours.pad_id == 0 and ours.ids()["bos_token_id"] == 1


def test_vocabularies_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Wav2Vec2CTCTokenizer"}')
    every: tuple[Any, ...] = ({"eng": VOCABULARY}, {"a": 0, "b": 2}, [], {"a": True})
    for content in every:
        (tmp_path / "vocab.json").write_text(json.dumps(content))
        with pytest.raises(FileRefused, match=r"vocab\.json"):
            Tokenizer.load(tmp_path)
