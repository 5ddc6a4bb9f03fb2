"""What the pages of docs/ show is run, and what docs/parts.md says of a part is asked of the part."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import build, parts
from anyformer.core.mixer import Mixer
from anyformer.core.recipe import Recipe
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.parts.attention.block_sparse import BlockSparse
from anyformer.parts.attention.global_tokens import GlobalAttention
from tests.later import later
from tests.parts.mixing import made, run, step_by_step

DOCS = Path(__file__).parent.parent / "docs"
TABLE = re.findall(
    r"^\| `(\w+)` \| (yes|no) \| (yes|no) \| (yes|no) \| (.*?) \|", (DOCS / "parts.md").read_text(), re.M
)
SMALL: dict[str, Recipe] = {
    "Linformer": parts.Linformer.of(length=8, heads=2, rank=4), "Nystrom": parts.Nystrom.of(heads=2, landmarks=4),
    "LocalAttention": parts.LocalAttention.of(heads=2, size=4), "Mamba": parts.Mamba.of(state=2),
    "BlockSparse": BlockSparse.of(heads=2, size=2, random=1),
    "LSHAttention": parts.LSHAttention.of(heads=2, size=8, buckets=2), "AutoCorrelation": parts.AutoCorrelation.of(),
    "GlobalAttention": GlobalAttention.of(heads=2), "Fourier": parts.Fourier.of(),
    "Mamba2": parts.Mamba2.of(heads=2, state=2), "Convolution": parts.Convolution.of(width=3),
}  # fmt: skip


def can(recipe: Recipe, causal: bool) -> bool:
    """Does a pass over eight tokens work?"""
    try:
        run(made(recipe), torch.randn(1, 8, 12, dtype=torch.float64), causal)
    except ValueError:
        return False
    return True


def test_the_python_of_the_parts_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / "parts.md").read_text(), re.S))
    exec(compile(code, "docs/parts.md", "exec"), {})
    said = capsys.readouterr().out
    right, wrong = (float(found) for found in re.findall(r"tensor\((.*?)\)", said))
    assert right < 1e-6 < 0.02 < wrong
    assert "Linformer mixes every token" in said


def test_the_python_about_pictures_in_a_text_runs() -> None:
    names: dict[str, Any] = {"__name__": __name__}
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / "flamingo.md").read_text(), re.S))
    exec(compile(code, "docs/flamingo.md", "exec", dont_inherit=True), names)
    learns = {n.partition(".")[0] for n, p in names["model"].named_parameters() if p.requires_grad}
    assert learns == {"images", "gated"}


def test_the_python_about_codes_of_pictures_runs() -> None:
    names: dict[str, Any] = {"__name__": __name__}
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / "dalle.md").read_text(), re.S))
    exec(compile(code, "docs/dalle.md", "exec", dont_inherit=True), names)
    assert names["again"].shape == (3, 3, 8, 8) and names["pictures"].shape == (2, 3, 8, 8)
    assert all(parameter.grad is not None for parameter in names["dvae"].parameters())


def test_the_python_about_passages_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / "rag.md").read_text(), re.S))
    exec(compile(code, "docs/rag.md", "exec", dont_inherit=True), {"__name__": __name__})
    assert "torch.Size([2, 16, 128]) torch.Size([2, 16, 3])" in capsys.readouterr().out


def test_the_python_about_another_kind_of_input_runs(capsys: pytest.CaptureFixture[str]) -> None:
    section = (DOCS / "adding-an-architecture.md").read_text().split("## 5. Another kind of input")[1]
    names: dict[str, object] = {"__name__": __name__}
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, re.S))
    exec(compile(code, "docs/adding-an-architecture.md", "exec", dont_inherit=True), names)
    assert capsys.readouterr().out.split() == ["3", "True"]
    shorter = names["behind"](None, names["flow"])  # type: ignore[operator]
    assert shorter.positions.tolist() == [0, 1] and shorter.find(names["Frames"]) is None


def test_the_python_about_proteins_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "proteins.md").read_text()
    code, output = (re.findall(rf"```{kind}\n(.*?)```", text, re.S)[0] for kind in ("python", "text"))
    exec(compile(code, "docs/proteins.md", "exec", dont_inherit=True), {})
    assert capsys.readouterr().out == output


def test_the_python_about_vision_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "vision.md").read_text()
    code, output = ("\n".join(re.findall(rf"```{kind}\n(.*?)```", text, re.S)) for kind in ("python", "text"))
    exec(compile(code, "docs/vision.md", "exec", dont_inherit=True), {})
    assert capsys.readouterr().out.split() == output.split()


def test_the_python_about_pictures_inside_a_text_runs_and_prints_what_it_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (DOCS / "multimodal.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    for code, output in blocks:
        exec(compile(code, "docs/multimodal.md", "exec", dont_inherit=True), {})
        assert capsys.readouterr().out == output


def test_the_python_about_pictures_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text, names = (DOCS / "pictures.md").read_text(), dict[str, object]()
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)
    assert len(blocks) >= 2
    for code, output in blocks:
        exec(compile(code, "docs/pictures.md", "exec", dont_inherit=True), names)
        assert capsys.readouterr().out == output


def test_the_python_about_understanding_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text, names = (DOCS / "understanding.md").read_text(), dict[str, object]()
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)
    assert len(blocks) == 4
    for code, output in (*blocks[:2], blocks[3]):  # the third one is of the real model, below
        exec(compile(code, "docs/understanding.md", "exec", dont_inherit=True), names)
        assert capsys.readouterr().out == output


def test_the_commands_about_understanding_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tiny model in place of smollm2, and files of the forms that the document shows."""
    from anyformer.cli import main

    monkeypatch.chdir(tmp_path)
    words = "The capital of France is Paris, and Rome is the capital of Italy. The film was glad, not sad. " * 30
    tokenizer = Tokenizer.train_bpe([words], 400)
    model = build("llama", "tiny", vocab=tokenizer.vocab_size, context=256, seed=0)
    model.tokenizer = tokenizer
    model.save(tmp_path / "smollm2")
    for name in ("README.md", "LICENSE", "book.txt"):
        (tmp_path / name).write_text(words)
    for name in ("glad", "sad"):
        (tmp_path / f"{name}.txt").write_text("".join(f"The film {i} was {name}.\n" for i in range(8)))
    text = (DOCS / "understanding.md").read_text()
    commands = [c for block in re.findall(r"```sh\n(.*?)```", text, re.S) for c in block.splitlines()]
    assert len(commands) == 7 and all(c.startswith("anyformer ") for c in commands)
    for command in commands:
        short = ["--steps", "2", "--vocab", "300"] if " train " in command else []
        assert main([*shlex.split(command, comments=True)[1:], *short]) == 0, (command, capsys.readouterr().err)
    assert {"report.html", "relevance.html", "roles.html", "neurons.html", "glad.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert (tmp_path / "runs" / "book" / "film.html").exists()


def test_the_commands_about_evaluation_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tiny models in place of smollm2 and minilm, and files of the forms that the document shows."""
    from anyformer.cli import main

    text = (DOCS / "evaluation.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name, page in (("smollm2", "llama"), ("minilm", "bert"), ("runs/reviews", "llama")):
        model = build(page, "tiny", vocab=257, seed=len(name), **({"context": 512} if page == "llama" else {}))
        model.tokenizer = Tokenizer.bytes_level()
        model.tokenizer.roles["bos_token"] = "a"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        model.save(tmp_path / name)
    choice, pair = re.findall(r"```json\n(.*?)```", text, re.S)[0].splitlines()
    more = [choice.replace("lighthouse", word) for word in ("A", "B", "C", "D", "E")]
    (tmp_path / "questions.jsonl").write_text(f"{choice}\n{more[0]}\n")
    (tmp_path / "train.jsonl").write_text("\n".join(more))
    (tmp_path / "pairs.jsonl").write_text(pair)
    (tmp_path / "words.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])
    (tmp_path / "reviews.csv").write_text("text,label\nfine,good\ndull,bad\n")
    (tmp_path / "asked.jsonl").write_text('{"prompt": "1 + 1 =", "response": "2"}\n')
    (tmp_path / "book.txt").write_text("the cat sat on the mat. " * 20)
    commands = re.findall(r"```sh\n(.*?)```", text, re.S)[0].splitlines()
    assert len(commands) == 8
    for command in commands:
        assert main(shlex.split(command, comments=True)[1:]) == 0, capsys.readouterr().err
    assert (tmp_path / "r.json").exists() and "WEAT" not in capsys.readouterr().err


@pytest.mark.parametrize("block", [0, 3, *later(1, 2, 4)])
def test_the_commands_about_smaller_models_run(
    block: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anyformer.cli import main

    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / "compress.md").read_text(), re.S)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("the cat sat on the mat. " * 200)
    for command in blocks[block].splitlines():
        try:
            assert main(shlex.split(command, comments=True)[1:]) == 0, capsys.readouterr().err
        except OSError as error:
            pytest.skip(f"the weights are not to be had here: {error}")


@pytest.mark.slow
def test_the_commands_about_understanding_run_on_the_real_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anyformer.cli import main

    text = (DOCS / "understanding.md").read_text()
    command, printed = re.findall(r"```sh\n(.*?)```\n\n```text\n(.*?)```", text, re.S)[0]
    code, output = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)[2]
    monkeypatch.chdir(tmp_path)
    try:
        assert main(shlex.split(command)[1:]) == 0
    except OSError as error:
        pytest.skip(f"the weights are not to be had here: {error}")
    assert _numbers(capsys.readouterr().out) == pytest.approx(_numbers(printed), abs=0.02)
    exec(compile(code, "docs/understanding.md", "exec", dont_inherit=True), {})
    assert _numbers(capsys.readouterr().out) == pytest.approx(_numbers(output), abs=0.02)


def _numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"[-+]?\d+\.\d+", text)]


def test_the_python_about_sound_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("soundfile")
    text = (DOCS / "sound.md").read_text()
    code, output = (re.findall(rf"```{kind}\n(.*?)```", text, re.S)[0] for kind in ("python", "text"))
    try:
        exec(compile(code, "docs/sound.md", "exec", dont_inherit=True), {})
    except OSError as error:
        pytest.skip(f"weights or recordings are not to be had here: {error}")
    assert capsys.readouterr().out == output


@pytest.mark.slow
def test_the_commands_about_decisions_run(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    root, text = DOCS.parent, (DOCS / "decisions.md").read_text()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "decisions.md").write_text(text)
    example, *commands = re.findall(r"```sh\n(.*?)```", text, re.S)[0].strip().splitlines()
    small = ["--collected", "24", "--steps", "2", "--seeds", "1", "--episodes", "1", "--processes", "1"]
    said = [
        subprocess.run(
            [sys.executable, *line], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=600
        ).stdout
        for line in (
            [root / example.split()[1], *example.split()[2:], *small],
            *(f"-m {c}".replace(" 500", " 2").replace("000500", "000002").split() for c in commands),
        )
    ]
    table = (tmp_path / "docs" / "decisions.md").read_text().split("<!-- table -->\n")[1].split("<!-- end -->")[0]
    assert table in said[0] and len(table.splitlines()) == 2 + 2 * 8
    assert re.findall(r"^ +(50|200) ", said[2], re.M) == ["50", "200"]


@pytest.mark.parametrize(("name", "decoder", "encoder", "packs", "state"), TABLE)
def test_the_table_of_mixers_is_true(name: str, decoder: str, encoder: str, packs: str, state: str) -> None:
    recipe = SMALL.get(name) or getattr(parts, name).of(heads=2)
    assert (can(recipe, True), can(recipe, False)) == (decoder == "yes", encoder == "yes")
    assert recipe.part.packs == (packs == "yes")
    mixer = made(recipe)
    if state == "—":
        assert decoder == "no"
    elif state.startswith("none"):
        with pytest.raises(ValueError, match="cache=False"):
            mixer.start(1, 8, torch.zeros(1))
    else:
        x = torch.randn(1, 8, 12, dtype=torch.float64)
        torch.testing.assert_close(step_by_step(mixer, x, [3, 1, 4]), run(mixer, x))


def test_no_mixer_is_forgotten() -> None:
    listed = {name for name, *_ in TABLE}
    others = {
        "ConvPositions",
        "Forget",
        "MemoryTokens",
        "TopK",
        "ExpertChoice",
        "Windows",
        "Grouped",
        "JointAttention",
        "LastJointAttention",
    }  # positions, what wraps blocks, routers, what needs a grid or two streams
    mixers = {n for n in parts.__all__ if isinstance(getattr(parts, n), type) and issubclass(getattr(parts, n), Mixer)}
    assert mixers - others <= listed
