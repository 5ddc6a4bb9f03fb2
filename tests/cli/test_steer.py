"""`anyformer steer`: a file of a direction, which every verb reads that writes texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.generate.steering import Direction, Steered, read


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
    code, probed, err = cli("steer", decoder, "--toward", glad, "--away", sad, "--out", out, "--by", "probe")
    assert code == 0 and "<- chosen" in probed and (read(str(out)).made or {})["by"] == "probe", err
    sad.write_text("one\n")
    code, _, err = cli("steer", decoder, "--toward", glad, "--away", sad, "--out", tmp_path / "x.safetensors")
    assert code == 2 and "at least 4 texts" in err and not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("caption", "MODEL", "a.png"), "anyformer.generate.caption"),
        (("transcribe", "a.wav", "--model", "MODEL"), "anyformer.generate.transcribing.transcribe"),
        (("serve", "MODEL"), "anyformer.serve.serve"),
    ],
)
def test_verbs_that_write_take_a_direction(cli, decoder, tmp_path, monkeypatch, words, place):
    """What they hand on is the model with the direction in every pass, also those that it makes by itself."""
    pytest.importorskip("fastapi")
    file, ids, seen = tmp_path / "glad.safetensors", torch.tensor([[5, 6, 7]]), list[Any]()
    model = af.load(decoder).eval()
    Direction("blocks.0", torch.randn(model.width, generator=torch.Generator().manual_seed(0))).save(file)

    def used(model: Any, *args: Any, **options: Any) -> Any:
        seen.append(model[0] if isinstance(model, list) else model)
        raise ValueError("enough")

    monkeypatch.setattr(place, used)
    words = [str(decoder) if word == "MODEL" else word for word in words]
    assert cli(*words, "--steer", f"{file}:2")[0] == 2 and cli(*words)[0] == 2
    steered, plain = (m.eval()(ids).logits for m in seen)
    assert torch.equal(steered, Steered(model, [read(f"{file}:2")])(ids).logits)
    assert torch.equal(plain, model(ids).logits) and not torch.equal(steered, plain)


def test_a_direction_is_of_one_served_model(cli, decoder, encoder, tmp_path):
    pytest.importorskip("fastapi")
    code, _, err = cli("serve", decoder, encoder, "--steer", tmp_path / "a.safetensors")
    assert code == 2 and "a direction is one model's, and 2 are served" in err
