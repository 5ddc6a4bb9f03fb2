"""--ignore and --task: every verb that reads a model's files can read them with a key left out, or as another class."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.cli import VERBS, verb
from anyformer.cli.options import Parser
from anyformer.hub.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("forked")  # `federate` starts processes

NO_FILES = {"tokenizer", "scale", "ls", "demo", "edge"}  # the verbs that read no model of the user's, or a teacher
# `task` says what is learned, or measured
OTHER_CLASS = dict.fromkeys(("train", "finetune", "align", "federate", "eval"), "overrides")
CALLS = {
    "generate": ("MODEL", "a", "--max-new-tokens", "2"), "chat": ("MODEL", "a", "--max-new-tokens", "2"),
    "embed": ("MODEL", "a"), "classify": ("MODEL", "a"), "tag": ("MODEL", "a"),
    "detect": ("a.png", "--model", "MODEL"), "transcribe": ("a.wav", "--model", "MODEL"),
    "act": ("MODEL", "--env", "CartPole-v1"), "paint": ("MODEL", "a"),
    "reconstruct": ("MODEL", "a.wav"), "compose": ("a", "--model", "MODEL"),
    "caption": ("MODEL", "a.png"), "ask": ("MODEL", "a.png", "a"),
    "index": ("FOLDER", "--out", "OUT", "--model", "MODEL"), "answer": ("MODEL", "ROWS"),
    "forecast": ("MODEL", "ROWS", "--horizon", "2"), "predict": ("MODEL", "ROWS"), "fold": ("MODEL", "FASTA"),
    "explain": ("MODEL", "a", "--json", "--method", "grad"),
    "steer": ("MODEL", "--toward", "LINES", "--away", "LINES", "--out", "OUT"),
    "inspect": ("MODEL",), "show": ("MODEL", "a.png"), "count": ("MODEL", "--tokens", "4"),
    "plan": ("MODEL", "--tokens", "1m", "--gpus", "1xh100", "--context", "8"),
    "draw": ("MODEL", "--out", "OUT.svg"),
    "serve": ("MODEL", "--port", "65536"),  # a port that there is not: the model has been read
    "diff": ("MODEL", "llama"), "verify": ("MODEL",), "convert": ("MODEL", "OUT"),
    "eval": ("MODEL", "ROWS", "--max-new-tokens", "2"),
    "compress": ("MODEL", "--to", "int8", "--group", "8", "--out", "OUT", "--max-kld", "9"),
    "train": ("--model", "MODEL", "--data", "DATA", "--out", "OUT", "--steps", "1", "--device", "cpu"),
    "align": ("dpo", "MODEL", "--data", "PAIRS", "--out", "OUT", "--steps", "1", "--device", "cpu"),
    "federate": ("MODEL", "--clients", "CLIENTS", "--out", "OUT", "--rounds", "1", "--local-steps", "1",
                 "--processes", "1", "--device", "cpu"),
    "finetune": ("--model", "MODEL", "--data", "ROWS", "--out", "OUT", "--steps", "1", "--device", "cpu"),
}  # fmt: skip
HEADLESS = {
    "explain",
    "generate",
    "chat",
    "classify",
    "tag",
    "detect",
    "caption",
    "ask",
    "answer",
    "act",
    "forecast",
    "predict",
    "fold",
    "paint",
    "reconstruct",
    "compose",
    "show",
    "serve",
    "train",
    "finetune",
    "align",
    "federate",
    "eval",
}  # fmt: skip  (they need a head)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA whose config says an unknown key."""
    made = af.build("llama", "tiny", vocab=257, context=128, seed=0)
    made.tokenizer = Tokenizer.bytes_level()
    made.tokenizer.template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    folder = tmp_path_factory.mktemp("model")
    made.save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "angle": 3}))
    return folder


@pytest.fixture(scope="module")
def headless(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without the matrix of its head."""
    folder = tmp_path_factory.mktemp("headless")
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "lm_head.weight"}, folder / "model.safetensors")
    return folder


def argv(name: str, model: Path, folder: Path) -> list[str]:
    (folder / "text.txt").write_text("the cat sat on the mat. " * 60)
    (folder / "rows.jsonl").write_text(
        "\n".join(json.dumps({"prompt": "a", "response": "b" * i}) for i in range(1, 30))
    )
    (folder / "a.fasta").write_text(">a\nMKT\n")
    (folder / "lines.txt").write_text("a cat\na dog\na cow\na hen\n")
    (folder / "pairs.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"a{i}", "chosen": "b", "rejected": "c"}) for i in range(4))
    )
    for name_of_client in "ab":
        (folder / "clients").mkdir(exist_ok=True)
        (folder / "clients" / f"{name_of_client}.jsonl").write_text((folder / "rows.jsonl").read_text())
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "a.txt").write_text("the cat")
    places = {"MODEL": model, "FOLDER": folder / "docs", "PAIRS": folder / "pairs.jsonl",
              "CLIENTS": folder / "clients",
              "FASTA": folder / "a.fasta", "OUT": folder / "out",
              "OUT.svg": folder / "out.svg", "DATA": folder / "text.txt",
              "LINES": folder / "lines.txt",
              "ROWS": folder / "rows.jsonl"}  # fmt: skip
    return [name, *(str(places.get(word, word)) for word in CALLS[name])]


def test_every_verb_is_known_here() -> None:
    assert {*CALLS, *NO_FILES} == set(VERBS)


@pytest.mark.parametrize("name", CALLS)
def test_every_verb_that_reads_files_has_both_options(name: str) -> None:
    parser = Parser(name, "", "")
    verb(name).options(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    assert known >= {"--ignore", f"--{OTHER_CLASS.get(name, 'task')}"}


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_key_is_refused_and_read_over_when_asked(name: str, cli, model: Path, tmp_path: Path) -> None:
    code, _, err = cli(*argv(name, model, tmp_path))
    assert code == 2 and "unknown config keys: angle=3" in err and "--ignore angle" in err
    if name == "verify":
        return  # a minute of checks; `test_verify` has them
    code, _, err = cli(*argv(name, model, tmp_path), "--ignore", "angle")
    assert "angle" not in err
    # a LLaMA has no classes, sees and hears nothing, draws nothing, does not act, and knows no series and no graphs
    takes = ("generate", "chat", "embed", "index", "explain", "steer", "inspect", "count", "plan", "draw", "diff",
             "convert", "compress", "train", "finetune", "align", "federate", "eval")  # fmt: skip
    assert code == (0 if name in takes else 2), err


@pytest.mark.parametrize("name", [name for name in CALLS if name != "transcribe"])  # its task is translation
def test_another_class_of_the_files_can_be_read(name: str, cli, headless: Path, tmp_path: Path) -> None:
    given = (*argv(name, headless, tmp_path), "--ignore", "angle")
    code, _, err = cli(*given)
    unread = name in ("count", "plan")  # they read no weights
    assert unread or (code == 2 and "missing in the file: lm_head.weight" in err)
    if name == "verify":
        return
    code, _, err = cli(*given, "--overrides.task" if name in OTHER_CLASS else "--task", "none")
    assert "missing" not in err
    assert code == (2 if name in HEADLESS else 0), err


def test_an_architecture_is_shown_as_that_class_too(cli) -> None:
    code, out, _ = cli("inspect", "llama", "--task", "none")
    assert code == 0 and "Logits" not in out
    assert "Logits" in cli("inspect", "llama")[1]
    code, _, err = cli("verify", "llama", "--task", "none")
    assert code == 2 and "task and ignore are for the files of a model" in err
