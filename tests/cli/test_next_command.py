"""`train` and `finetune` end by printing the command that uses the model; here it is run, for each task."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import anyformer as af
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.know import Encoder, index
from anyformer.media.proteins import pdb_text
from anyformer.train.next_command import next_command
from anyformer.train.tasks.registry import KINDS

SENTENCES = [f"the {a} cat {b} on the mat number {i}" for i, (a, b) in enumerate([("old", "sat"), ("new", "ran")] * 15)]
ENCODER = ("--model", "bert", "--size", "tiny", "--vocab", "300")
SMALL = ("--size", "tiny", "--vocab", "400", "--context", "24")
TRAIN = {
    "causal": ("--model", "gpt", *SMALL, "--data", "BOOK", "--prompt", "the old cat"),
    "masked": (*ENCODER, "--data", "BOOK", "--context", "24"),
    "span": ("--model", "t5", *SMALL, "--data", "BOOK"),
    "denoise": ("--model", "bart", *SMALL, "--data", "BOOK"),
    "seq2seq": ("--model", "t5", *SMALL, "--task", "seq2seq", "--data", "PAIRS"),
    "classify": (*ENCODER, "--task", "classify", "--data", "TEXTS"),
    "tag": (*ENCODER, "--task", "tag", "--data", "WORDS"),
    "images": ("--model", "vit", "--size", "tiny", "--data", "PICTURES"),
    "match": ("--model", "clip", "--vocab", "300", "--data", "CAPTIONS"),
    "caption": ("--model", "llava", "--size", "tiny", "--overrides.text.context", "96", "--data", "CAPTIONS"),
    "draw": ("--model", "dalle", "--size", "tiny", "--overrides.text", "40", "--vocab", "300", "--codes", "CODES",
             "--data", "CAPTIONS"),
    "compose": ("--model", "musicgen", "--size", "tiny", "--vocab", "300", "--codes", "CODEC", "--data", "SOUNDS"),
    "stage": ("--model", "musiclm", "--size", "tiny", "--vocab", "300", "--data", "SPELLED"),
    "reconstruct": ("--model", "dvae", "--size", "tiny", "--data", "PICTURES"),
    "answer": ("--model", "lxmert", "--size", "tiny", "--vocab", "300", "--data", "QUESTIONS"),
    "paint": ("--model", "dit", "--size", "tiny", "--data", "PICTURES"),
    "retrieve": ("--model", "rag", "--size", "tiny", "--vocab", "300", "--overrides.documents", "true",
                 "--data", "ASKED", "--index", "INDEX"),
    "detect": ("--model", "detr", "--size", "mini", "--data", "BOXES"),
    "act": ("--model", "decision_transformer", "--size", "tiny", "--context", "4", "--data", "EPISODES"),
    "clone": ("--model", "decision_transformer", "--size", "tiny", "--context", "4", "--task", "clone",
              "--data", "EPISODES"),
    "forecast": ("--model", "informer", "--size", "tiny", "--overrides.lags", "[1,2]", "--data", "SERIES"),
    "graphs": ("--model", "graphormer", "--size", "tiny", "--data", "GRAPHS"),
    "fold": ("--model", "esmfold", "--size", "tiny", "--data", "PROTEINS"),
    "ctc": ("--model", "wav2vec2", "--size", "tiny", "--data", "SOUNDS"),
    "contrast": ("--model", "wav2vec2", "--size", "tiny", "--task", "contrast", "--data", "SOUNDS"),
    "units": ("--model", "hubert", "--size", "tiny", "--task", "units", "--clusters", "3", "--data", "SOUNDS"),
}  # fmt: skip
TUNE = {  # task -> what it starts from, and its rows
    "write": ("causal", "PAIRS"), "seq2seq": ("seq2seq", "PAIRS"), "classify": ("masked", "TEXTS"),
    "tag": ("masked", "WORDS"), "embed": ("masked", "TWINS"), "images": ("images", "PICTURES"),
    "match": ("match", "CAPTIONS"), "paint": ("paint", "PICTURES"), "draw": ("draw", "CAPTIONS"),
}  # fmt: skip
WAYS = {"write": "lora", "seq2seq": "full", "classify": "lora", "tag": "full", "match": "full"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data of every kind, and where runs go."""
    home = tmp_path_factory.mktemp("home")
    (home / "book.txt").write_text(". ".join(SENTENCES * 20))
    noise = np.random.default_rng(0)
    (home / "flat").mkdir()
    for i in range(24):
        picture = Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        folder = home / "pictures" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        for file in (folder / f"{i}.png", home / "flat" / f"{i}.png"):
            picture.save(file)

    def rows(name: str, content: list[dict]) -> Path:
        (home / name).write_text("".join(json.dumps(row) + "\n" for row in content))
        return home / name

    (home / "proteins").mkdir()
    for i in range(2):
        places = noise.normal(scale=5, size=(6, 14, 3)).astype(np.float32)
        (home / "proteins" / f"{i}.pdb").write_text(pdb_text([("MKTAYG", places, np.zeros(6))], []))
    (home / "sounds").mkdir()
    for i in range(24):
        soundfile.write(home / "sounds" / f"{i}.wav", noise.normal(0, 0.1, 1600 + 80 * i), 16000)
        (home / "sounds" / f"{i}.txt").write_text("ab"[i % 2])
    sides = {"height": 16, "width": 16}
    images = [{"id": i, "file_name": str(home / "flat" / f"{i}.png"), **sides} for i in range(24)]
    marks = [{"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [2, 3, 5, 6]} for i in range(24)]
    kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (home / "boxes.json").write_text(json.dumps({"images": images, "annotations": marks, "categories": kinds}))
    (home / "papers").mkdir()
    for i in range(4):
        (home / "papers" / f"{i}.txt").write_text(SENTENCES[i])
    bert = af.build("bert", "tiny", vocab=300, context=64, seed=0)
    bert.tokenizer = Tokenizer.bytes_level()
    index(home / "papers", home / "index", Encoder(bert, "tiny"))
    table = home / "series.csv"
    days = np.arange("2024-01-01", "2024-04-01", dtype="datetime64[D]")
    table.write_text("time,target\n" + "".join(f"{day},{i}\n" for i, day in enumerate(days)))
    steps = [[[0.1 * t] * 4 for t in range(5 + i % 3)] for i in range(20)]
    return {
        "HOME": home, "BOXES": home / "boxes.json", "BOOK": home / "book.txt", "PICTURES": home / "pictures",
        "SOUNDS": home / "sounds", "PROTEINS": home / "proteins",
        "TEXTS": rows("texts.jsonl", [{"text": s, "label": s.split()[1]} for s in SENTENCES]),
        "WORDS": rows("words.jsonl", [{"words": s.split(), "labels": [w[0] for w in s.split()]} for s in SENTENCES]),
        "PAIRS": rows("pairs.jsonl", [{"source": s, "target": s.upper()} for s in SENTENCES]),
        "TWINS": rows("twins.jsonl", [{"anchor": s, "positive": s.title()} for s in SENTENCES]),
        "CAPTIONS": rows("captions.jsonl", [{"image": f"flat/{i}.png", "text": SENTENCES[i]} for i in range(24)]),
        "GRAPHS": rows("graphs.jsonl", [{"nodes": 2 + i % 3, "edges": [[0, 1]], "label": i} for i in range(20)]),
        "SERIES": table, "CODEC": home / "codec",
        "SPELLED": rows("spelled.jsonl", [{"text": s[:9], "semantic": [i % 5] * 6} for i, s in enumerate(SENTENCES)]),
        "ASKED": rows("asked.jsonl", [{"question": s[4:16], "answer": s[4:7]} for s in SENTENCES]),
        "INDEX": home / "index",
        "QUESTIONS": rows("questions.jsonl", [
            {"question": s, "features": [[0.5] * 3] * n, "boxes": [[0, 0, 1, 1]] * n, "label": s[4:7]}
            for s, n in zip(SENTENCES, [1, 2] * 15, strict=True)
        ]),
        "EPISODES": rows("CartPole-v1.jsonl", [
            {"states": s, "actions": [i % 2] * len(s), "rewards": [1.0] * len(s)} for i, s in enumerate(steps)
        ]),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _at_home(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands write their files there."""
    monkeypatch.chdir(places["HOME"])


def run(cli, places: dict[str, Path], *argv: str) -> list[str]:
    """Runs a command and returns the words of the one that it prints."""
    code, out, err = cli(*(places.get(word, word) for word in argv), "--device", "cpu")
    assert code == 0, err
    return shlex.split(next(line for line in out.splitlines() if line.startswith("next: ")).removeprefix("next: "))


def check(cli, words: list[str], task: str, folder: Path) -> None:
    assert words[:2] == ["anyformer", KINDS[task].verb]
    place = {"finetune": 3, "detect": -1, "transcribe": -1, "compose": -1, "ask": -1}.get(words[1], 2)
    assert words[place] == str(folder)  # the run stands for its model
    short = {"finetune": ["--steps", "2", "--batch", "4", "--out", str(folder / "tuned"), "--device", "cpu"]}
    short |= {"compose": ["--seconds", "0.5"]} | {verb: ["--max-new-tokens", "4"] for verb in ("generate", "chat")}
    code, out, err = cli(*words[1:], *short.get(words[1], []))
    assert code == 0 and (out.strip() or words[1] in ("generate", "transcribe")), (
        err
    )  # two steps may teach to write nothing


def trained(cli, places: dict[str, Path], task: str) -> tuple[Path, list[str]]:
    """The folder of a run, made once, and the command that it printed."""
    folder = places["HOME"] / f"train-{task}"
    if task == "draw":
        places = {**places, "CODES": trained(cli, places, "reconstruct")[0]}
    if task == "compose":
        af.build("encodec", "tiny", seed=0).save(places["CODEC"])
    if not folder.exists():
        argv = ("train", *TRAIN[task], "--steps", "2", "--batch", "4", "--out", str(folder))
        (places["HOME"] / f"{task}.json").write_text(json.dumps(run(cli, places, *argv)))
    return folder, json.loads((places["HOME"] / f"{task}.json").read_text())


def test_every_task_is_here() -> None:
    assert {*TRAIN, *TUNE} == set(KINDS)


@pytest.mark.parametrize("task", TRAIN)
def test_what_train_prints_works(
    cli, places: dict[str, Path], task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what it writes
    if task in ("act", "clone"):
        pytest.importorskip("gymnasium")
    folder, words = trained(cli, places, task)
    check(cli, words, task, folder)


@pytest.mark.parametrize("task", TUNE)
def test_what_finetune_prints_works(cli, places: dict[str, Path], task: str) -> None:
    start, data = TUNE[task]
    folder = places["HOME"] / f"tune-{task}"
    argv = ("--model", str(trained(cli, places, start)[0]), "--data", data, "--task", task, "--out", str(folder))
    words = run(cli, places, "finetune", *argv, "--method", WAYS.get(task, "full"), "--steps", "2", "--batch", "4")
    check(cli, words, task, folder)


def test_a_running_mean_that_was_measured_is_named(cli, places: dict[str, Path]) -> None:
    out = places["HOME"] / "mean"
    words = run(
        cli, places, "train", *TRAIN["causal"], "--steps", "2", "--batch", "2", "--ema", "0.5", "--out", str(out)
    )
    assert words[2] == str(out / "step-000002" / "ema")
    assert cli(*words[1:], "--max-new-tokens", "2")[0] == 0


def test_a_model_with_a_chat_template_is_talked_with(cli, decoder: Path, places: dict[str, Path]) -> None:
    out = places["HOME"] / "talk"
    argv = ("--model", str(decoder), "--data", "PAIRS", "--steps", "1", "--batch", "2", "--out", str(out))
    words = run(cli, places, "finetune", *argv)
    assert words[:3] == ["anyformer", "chat", str(out)]
    assert cli(*words[1:], "--max-new-tokens", "2")[0] == 0


def test_a_model_of_texts_paints_one_of_its_data(cli, places: dict[str, Path]) -> None:
    sizes = ("--overrides.text", "8", "--overrides.pooled", "8", "--vocab", "300")
    argv = ("--model", "mmdit", "--size", "tiny", *sizes, "--data", "CAPTIONS", "--steps", "1", "--batch", "2")
    words = run(cli, places, "train", *argv, "--out", str(places["HOME"] / "texts"))
    assert words[1:] == [
        "paint",
        str(places["HOME"] / "texts"),
        "the old cat sat on the mat number",
        "--out",
        "picture.png",
    ]
    assert cli(*words[1:], "--steps", "2")[0] == 0


def test_an_environment_or_a_picture_without_a_name_is_left_open(tmp_path: Path) -> None:
    assert next_command("act", tmp_path, None, "episodes.jsonl").endswith("--env ENVIRONMENT")
    assert next_command("images", tmp_path, None, "hub:owner/name").endswith(" PICTURE")
