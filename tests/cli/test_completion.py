"""The script for bash completes verbs and options."""

from __future__ import annotations

import subprocess

import pytest

from anyformer.cli import VERBS


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("fin",), {"finetune"}),
        (("train", "--acc"), {"--accumulate"}),
        (("generate", "--max-new"), {"--max-new-tokens"}),
        (("",), set(VERBS)),
    ],
)
def test_bash_completes(cli, tmp_path, words, found):
    pytest.importorskip("shtab")
    code, script, _ = cli("--completion", "bash")
    assert code == 0
    (tmp_path / "complete.sh").write_text(script)
    typed = " ".join(f"'{word}'" for word in ("anyformer", *words))
    ask = f"source complete.sh; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _shtab_anyformer; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, cwd=tmp_path)
    assert found <= set(done.stdout.split()), done.stderr


def test_another_shell_is_refused(cli):
    code, _, err = cli("--completion", "fish")
    assert code == 2 and "--completion fish: unknown shell; there is bash, zsh, tcsh" in err
