"""What a user gets wrong is answered with one clear line, the nearest name and exit code 2; help tells the rest."""

import ast
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import anyformer
from anyformer.cli import GOALS, VERBS, overview, verb
from anyformer.cli.options import Parser

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(anyformer.__file__).parent.parent),
}  # also where it is not installed
HEAVY = ("torch", "numpy", "tokenizers", "transformers", "rich", "jinja2", "matplotlib", "huggingface_hub", "gguf")


@pytest.mark.parametrize("name", VERBS)
def test_help_has_types_defaults_and_the_example(cli, name):
    code, out, _ = cli(name, "--help")
    words = " ".join(out.split())
    assert code == 0
    assert verb(name).EXAMPLE in out and "example:" in out
    assert "default: " in words and verb(name).EXAMPLE.startswith(f"anyformer {name}")
    if name not in ("ls",):
        assert "type: " in words


@pytest.mark.parametrize("name", VERBS)
def test_every_option_has_a_help_text(name):
    parser = Parser(name, "", "")
    verb(name).options(parser)
    silent = [a.dest for a in parser._actions if not (a.help or "").strip()]
    assert not silent


def test_overview_names_every_verb():
    for name in VERBS:
        assert f"  {name}" in overview()


def test_the_command_alone_names_a_goal_for_every_verb(cli):
    code, out, _ = cli()
    assert code == 0 and all(len(line) <= 100 for line in out.splitlines())
    commands = [shlex.split(command)[1:] for _, command in GOALS]
    assert {name for name, *_ in commands} == set(VERBS)
    for name, *words in commands:
        assert f"anyformer {name}" in out
        parser = Parser(name, "", "")
        verb(name).options(parser)
        parser.parse_args(words)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["generat"], "generat: unknown, did you mean generate?"),
        (["ls", "--jsn"], "--jsn: unknown, did you mean --json?"),
        (["generate", "x", "y", "--max_new_token", "3"], "--max_new_token: unknown, did you mean --max-new-tokens?"),
        (["generate", "x", "y", "--max-new-tokenz=3"], "--max-new-tokenz: unknown, did you mean --max-new-tokens?"),
        (["train", "--stpes", "3"], "--stpes: unknown, did you mean --steps?"),
        (["train", "--overides.depth", "3"], "--overides.depth: unknown, did you mean --overrides?"),
        (["train", "--save_every", "often"], "--save-every: expected a whole number, got 'often'"),
        (["generate", "x", "y", "--temperature", "warm"], "--temperature: expected a number, got 'warm'"),
        (
            ["convert", "a", "b", "--dtype", "int3"],
            "--dtype: expected one of float32, float16, bfloat16, q8_0, q4_0, q4_1 or null, got 'int3'",
        ),
        (["convert", "a"], "dest"),
        (["inspect", "lama"], "no model 'lama' (did you mean llama"),
        (["inspect", "llama", "--size", "7x"], "llama has no size '7x' (did you mean 7b"),
        (["inspect", "smolm2"], "did you mean smollm2"),
        (["generate", "llama", "text"], "'llama' is an architecture, without weights"),
        (["chat", "./nowhere"], "no model './nowhere'"),
        (["generate", "nowhere.gguf", "text"], "no model 'nowhere.gguf'"),
        (["train", "--model", "gppt"], "gpt"),
        (["train", "--data", "nowhere.txt"], "nowhere.txt"),
        (["finetune", "--model", "minilm"], "data is missing"),
        (["finetune", "--model", "minilm", "--data", "nowhere.csv"], "nowhere.csv"),
        (["finetune", "--method", "lorra"], "--method: expected one of full, lora, dora, qlora"),
        (["generate", "a", "b", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes(cli, argv, said):
    code, _, err = cli(*argv)
    assert code == 2
    assert said in err
    assert "Traceback" not in err and len(err.strip().splitlines()) <= 2


def test_a_wrong_key_in_yaml_is_named(cli, tmp_path):
    (tmp_path / "c.yaml").write_text("temprature: 1\n")
    code, _, err = cli("generate", "a", "b", "--config", tmp_path / "c.yaml")
    assert code == 2 and "temprature: unknown, did you mean temperature?" in err


def test_a_typo_in_a_path_gets_the_nearest_neighbour(cli, decoder):
    code, _, err = cli("inspect", decoder.parent / (decoder.name[:-1] + "_"))
    assert code == 2 and str(decoder) in err


def test_files_that_are_no_model(cli, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    for name, said in (("bad.gguf", "bad.gguf"), ("folder", "no weights"), ("text.txt", "not a .gguf")):
        code, _, err = cli("inspect", tmp_path / name)
        assert code == 2 and said in err and "Traceback" not in err


def test_a_folder_without_a_model_is_told_where_one_is(cli, tmp_path, decoder):
    shutil.copytree(decoder, tmp_path / "mine" / "inner")
    code, _, err = cli("generate", tmp_path / "mine", "The ")
    assert code == 2 and "no weights" in err and str(tmp_path / "mine" / "inner") in err


def test_debug_shows_the_traceback(cli, tmp_path):
    _, _, err = cli("inspect", tmp_path / "nothing", "--debug")
    assert "Traceback" in err and "no model" in err


def test_a_verb_that_reads_text_says_that_the_tokenizer_is_missing(cli, tmp_path):
    import anyformer as af

    af.build("gpt", "tiny").save(tmp_path / "m")
    code, _, err = cli("generate", tmp_path / "m", "text")
    assert code == 2 and "has no tokenizer" in err
    assert cli("inspect", tmp_path / "m")[0] == 0


def test_npy_is_the_only_format_of_vectors(cli, encoder, tmp_path):
    code, _, err = cli("embed", encoder, "a", "--out", tmp_path / "v.csv")
    assert code == 2 and ".npy" in err


def test_a_missing_extra_says_what_to_install(monkeypatch, tmp_path):
    import anyformer as af
    from anyformer.explain import attention_picture

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'anyformer\[plot\]'"):
        attention_picture(af.build("gpt", "tiny"), [1, 2, 3], tmp_path / "a.png")


def test_importing_anyformer_loads_nothing_heavy():
    assert loaded("import anyformer") == []


@pytest.mark.parametrize(
    "argv",
    [[], ["--help"], ["--version"], ["nonsense"], ["ls"], *([name, "--help"] for name in VERBS), ["train", "--x"]],
)
def test_what_needs_no_model_imports_nothing_heavy(argv):
    """Help, mistakes and the listing are answered at once: PyTorch alone takes a second to import."""
    assert loaded(f"from anyformer.cli import main; main({argv})") == []


def loaded(code: str) -> list[str]:
    """The heavy modules that are imported once the code has run."""
    done = _python("-c", f"import sys; {code}; print([m for m in {HEAVY} if m in sys.modules])")
    return ast.literal_eval(done.stdout.splitlines()[-1])


def test_the_module_is_the_command():
    done = _python("-m", "anyformer", "ls", "--nonsense")
    assert done.returncode == 2 and "--nonsense: unknown" in done.stderr
    assert _python("-m", "anyformer", "--version").stdout.startswith("anyformer ")
    assert _python("-m", "anyformer").returncode == 0


def test_a_terminal_without_unicode_is_no_error():
    done = subprocess.run(
        [sys.executable, "-m", "anyformer", "--help"],
        capture_output=True,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and b"usage: anyformer VERB ?" in done.stdout


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m anyformer inspect llama --json | head -c 10",
        shell=True,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Broken" not in done.stderr


def _python(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
