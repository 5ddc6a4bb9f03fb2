"""MusicGen and the stages of MusicLM by the options of all tasks: codes of sounds, captions, resume, adapters."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer.cli import main
from anyformer.data.labels import IGNORE
from anyformer.generate import compose
from anyformer.generate.cascade import Cascade, save_cascade
from anyformer.generate.composing import texts_of, write
from anyformer.media.stages import SEGMENTS
from anyformer.train import finetune, train
from anyformer.train.tasks.composing import Composed

torch.set_num_threads(1)
GIVEN: dict[str, Any] = {"batch": 8, "quiet": True, "device": "cpu"}
SMALL: dict[str, Any] = {"tokenizer": "bytes", **GIVEN}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Low and high tones, each with its name: as files, and with semantic codes."""
    folder, lines = tmp_path_factory.mktemp("tones"), []
    (folder / "songs").mkdir()
    for i in range(40):
        name, step = (("low", 0.1), ("high", 1.0))[i % 2]
        soundfile.write(folder / "songs" / f"{i}.wav", 0.5 * np.sin(np.arange(240) * step + i), 120)
        (folder / "songs" / f"{i}.txt").write_text(name)
        row = {"text": name, "semantic": [5 * (i % 2) + t % 3 for t in range(6)], "sound": f"songs/{i}.wav"}
        lines.append(json.dumps(row))
    (folder / "songs.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def codec(home: Path) -> Path:
    """Of five books, 20 frames a second."""
    rates = {"bandwidths": [0.4]}
    train("encodec", "tiny", data=home / "songs", out=home / "codec", steps=6, lr=3e-3, overrides=rates, **GIVEN)
    return home / "codec"


@pytest.fixture(scope="module")
def run(home: Path, codec: Path) -> Path:
    done: Any = train(
        "musicgen", "tiny", data=home / "songs", codes=str(codec), out=home / "run", steps=40, lr=1e-2, warmup=5,
        **SMALL,
    )  # fmt: skip
    assert done.task == "compose" and done.held_out < 0.7 * done.baseline
    return home / "run"


def test_a_new_model_has_the_codec_and_leaves_it_as_it_is(home: Path, run: Path, codec: Path) -> None:
    model: Any = af.load(run / "step-000040")
    assert model.page == "musicgen" and model.config.writer.books == 5 and model.codec is not None
    before = load_file(codec / "step-000006" / "model.safetensors")
    own = load_file(run / "step-000040" / "model.safetensors")
    pairs = [(value, own[f"audio_encoder.{name}"]) for name, value in before.items()]
    assert all(torch.equal(one, other) for one, other in pairs)  # it learns nothing
    assert main(["compose", "low", "--model", str(run), "--seconds", "0.5", "--out", str(home / "low.wav")]) == 0


def test_a_resumed_run_is_the_same(home: Path, codec: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"data": home / "songs", "codes": str(codec), "steps": 4, "save_every": 2, **SMALL}
    train("musicgen", "tiny", out=tmp_path / "whole", keep_last=3, **given)
    shutil.move(tmp_path / "whole" / "step-000004", tmp_path / "kept")
    train("musicgen", "tiny", out=tmp_path / "whole", resume=True, **given)
    one, two = (load_file(p / "model.safetensors") for p in (tmp_path / "kept", tmp_path / "whole" / "step-000004"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_adapters_learn_other_captions_and_the_codec_stays(home: Path, run: Path, tmp_path: Path) -> None:
    done = finetune(str(run), home / "songs", method="lora", steps=4, out=tmp_path / "tuned", **GIVEN)
    assert done.task == "compose" and done.learned < done.parameters and done.folder is not None
    before, after = (load_file(p / "model.safetensors") for p in (run / "step-000040", done.folder))
    parts = [name for name in before if name.startswith("audio_encoder.")]
    assert parts and all(torch.equal(before[name], after[name]) for name in parts)
    changed = "decoder.model.decoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[changed], after[changed])


def test_the_codes_are_those_of_the_text(tmp_path: Path) -> None:
    rows = [{"text": name, "codes": [[3 * n, 3 * n + t] for t in range(3)]} for n, name in enumerate(("low", "high"))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, 20 * rows)))
    done: Any = train(
        "musicgen", "tiny", data=tmp_path / "rows.jsonl", out=tmp_path / "run", steps=40, lr=1e-2, **SMALL
    )
    model: Any = af.load(done.checkpoint)
    made = write(model, 3, rows=2, inputs=texts_of(model, ["low", "high"]), temperature=0.0)
    assert made.tolist() == [row["codes"] for row in rows] and done.held_out < 0.2 * done.baseline


def test_a_decoder_alone_learns_rows_of_codes(tmp_path: Path) -> None:
    rows = [{"codes": [[(t + i) % 4, (t + i + 1) % 4] for t in range(12)]} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done: Any = train(
        "musicgen", "tiny", data=tmp_path / "rows.jsonl", out=tmp_path / "run", steps=40, lr=1e-2, context=8, **GIVEN
    )
    model: Any = af.load(done.checkpoint)
    assert model.encoder is None and model.codec is None and model.config.writer.vocab == 4
    assert done.held_out < 0.3 * done.baseline
    codes = write(model, 6, temperature=0.0)[0]
    assert torch.equal(codes[1:], (codes[:-1] + 1) % 4)


def test_windows_and_lost_texts_belong_to_the_number_of_an_example() -> None:
    model: Any = af.build("musicgen", "tiny", seed=0)
    noise = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (40, 20, 3), generator=noise)
    codes[1::2, 15:] = IGNORE  # shorter rows

    class Some:
        def rows(self, first: int, count: int) -> dict[str, torch.Tensor]:
            some = slice(first, first + count)
            return {"codes": codes[some].flatten(1), "input_ids": torch.ones(count, 2, dtype=torch.long)}

    learned = Composed(Some(), model, 9, seed=3)  # type: ignore[arg-type]
    whole, parts = learned.rows(0, 40), [learned.rows(0, 7), learned.rows(7, 33)]
    assert all(torch.equal(whole[name], torch.cat([part[name] for part in parts])) for name in whole)
    lost = whole["attention_mask"].sum(1) == 0
    assert 0 < lost.sum() < 12
    labels = whole["labels"]
    for row in range(40):
        mine = model.pattern.back(labels[row : row + 1], 9)[0]
        assert any(torch.equal(mine, codes[row, at : at + 9]) for at in range(12))
    inputs = whole["decoder_input_ids"]
    assert bool((inputs[:, 0] == 16).all())
    assert torch.equal(inputs[:, 1:], labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, 16))
    plain = Composed(Some(), model, 99, 3, learns=False).rows(0, 2)  # type: ignore[arg-type]
    assert bool(plain["attention_mask"].all()) and plain["labels"].shape == (2, 22, 3)
    assert int((plain["labels"][1] != IGNORE).sum()) == 45


def test_the_stages_of_a_cascade_learn_from_one_table(home: Path, codec: Path, tmp_path: Path) -> None:
    made: dict[str, Any] = {"codec": af.load(codec / "step-000006")}
    for name in SEGMENTS:
        over = {"stage": name, "semantic": 8, "context": 300}
        done: Any = train(
            "musiclm", "tiny", data=home / "songs.jsonl", codes=str(codec), out=tmp_path / name, overrides=over,
            steps=20, lr=1e-2, warmup=2, **SMALL,
        )  # fmt: skip
        assert done.task == "stage" and done.held_out < done.baseline
        made[name] = af.load(done.checkpoint)
    whole = Cascade(**made, semantic_rate=3.0)
    save_cascade(whole, tmp_path / "all")
    assert len(compose(whole, "low", seconds=1.0, seed=0)[0].samples) == 120
    out = ["--seconds", "1", "--out", str(tmp_path / "low.wav")]
    assert main(["compose", "low", "--model", str(tmp_path / "all"), *out]) == 0
    tuned = finetune(
        str(tmp_path / "semantic"), home / "songs.jsonl", method="lora", steps=2, out=tmp_path / "t", **GIVEN
    )
    assert tuned.task == "stage" and tuned.folder is not None


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"sound": "songs/0.wav", "text": "a"}, {}, "whose codes is not said: train a codec"),
        ({"sound": "songs/0.wav", "text": "a"}, {"codes": "RUN"}, "musicgen is no codec of sound; train one"),
        ({"sound": "songs/0.wav", "text": "a"}, {"codes": "CODEC", "overrides": {"writer.books": 7}}, "says 7 books"),
        ({"sound": "songs/0.wav", "text": "a"}, {"codes": "CODEC", "context": 3}, "takes 5 steps of the decoder"),
        ({"sound": "songs/0.wav", "text": "a"}, {"codes": "CODEC", "context": 99}, "99 steps are more than the model"),
        ({"codes": [[1, 2], [3]]}, {}, r"codes must be a list of frames.*got \[\[1, 2\], \[3\]\]"),
        ({"codes": [[1, -2]]}, {}, "from 0 on"),
        (
            {"codes": [[1, 2]]},
            {"overrides": {"writer.vocab": 2}},
            "2 books of 2 codes, and the row has 2 with codes up",
        ),
        ({"codes": "a.npz"}, {}, "got 'a.npz'"),
        ({"codes": [[1, 2]], "text": ""}, {}, "'text' is ''"),
    ],
)
def test_mistakes_of_rows_are_named(
    row: dict[str, Any], options: dict[str, Any], said: str, home: Path, codec: Path, run: Path, tmp_path: Path
) -> None:
    options = {n: {"RUN": str(run), "CODEC": str(codec)}.get(str(v), v) for n, v in options.items()}
    (home / "bad.jsonl").write_text("\n".join([json.dumps(row)] * 20))
    with pytest.raises(ValueError, match=said):
        train("musicgen", "tiny", data=home / "bad.jsonl", out=tmp_path / "run", steps=1, **options, **SMALL)


@pytest.mark.parametrize(
    ("row", "over", "said"),
    [
        ({"semantic": [9]}, {"semantic": 8}, "semantic: code 9 is outside 0 to 7"),
        ({"semantic": [1]}, {"stage": "coarse"}, "the stage coarse learns from codes of a codec"),
        ({"semantic": [1], "sound": "songs/0.wav"}, {"stage": "fine"}, "--codes runs/codec"),
        ({"semantic": [1], "codes": [[1, 2]]}, {"stage": "fine"}, "says 5 books of 16 codes, and the row has 2"),
        ({"semantic": [1] * 99}, {}, "the stage semantic has 102 ids in this row, and its context is 96"),
        ({"semantic": "abc"}, {}, "'semantic' is 'abc'; every row needs a list"),
    ],
)
def test_mistakes_of_stages_are_named(
    row: dict[str, Any], over: dict[str, Any], said: str, home: Path, tmp_path: Path
) -> None:
    (home / "bad.jsonl").write_text("\n".join([json.dumps({"text": "a", **row})] * 20))
    with pytest.raises(ValueError, match=said):
        train("musiclm", "tiny", data=home / "bad.jsonl", out=tmp_path / "run", steps=1, overrides=over, **SMALL)
