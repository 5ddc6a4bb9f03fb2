"""`anyformer steer`: a file of a direction, which generate and chat read."""

from __future__ import annotations


def test_a_direction_is_made_and_steers(cli, decoder, tmp_path):
    glad, sad, out = tmp_path / "glad.txt", tmp_path / "sad.txt", tmp_path / "glad.safetensors"
    glad.write_text("a cat\nthe cat\none cat\nmy cat\n")
    sad.write_text("a dog\nthe dog\none dog\n\nmy dog\n")
    code, said, err = cli("steer", decoder, "--toward", glad, "--away", sad, "--out", out)
    assert code == 0 and "<- chosen" in said and said.splitlines()[-1] == str(out), err
    plain = cli("generate", decoder, "a cat", "--max-new-tokens", 8)[1]
    assert cli("generate", decoder, "a cat", "--max-new-tokens", 8, "--steer", f"{out}:0")[1] == plain
    code, steered, err = cli("generate", decoder, "a cat", "--max-new-tokens", 8, "--steer", f"{out}:500")
    assert code == 0 and steered != plain, err
    code, _, err = cli("generate", decoder, "a cat", "--steer", tmp_path / "none")
    assert code == 2 and "none" in err
    code, _, err = cli("steer", decoder, "--toward", glad, "--away", sad, "--out", out, "--at", "blocks.77")
    assert code == 2 and "blocks.77" in err
    sad.write_text("one\n")
    code, _, err = cli("steer", decoder, "--toward", glad, "--away", sad, "--out", tmp_path / "x.safetensors")
    assert code == 2 and "at least 4 texts" in err and not (tmp_path / "x.safetensors").exists()
