"""`anyformer explain`: one command, one page; texts, pictures, sounds and series."""

from __future__ import annotations

import json

import numpy as np
import pytest

import anyformer as af
from anyformer.hub.processors import ImageProcessor


def test_a_text_makes_a_page(cli, decoder, tmp_path):
    out = tmp_path / "deep" / "report.html"
    code, _, err = cli("explain", decoder, "a cat", "--for", " - a", "--out", out, "--method", "occlusion")
    assert code == 2 and "no tokenizer" not in err  # " - a": the first half is no token
    code, said, err = cli("explain", decoder, "a cat", "--for", "b", "--out", out)
    assert code == 0, err
    assert "explained: b" in said and said.splitlines()[-1] == str(out)
    assert out.read_text().startswith("<!doctype html>") and "Content-Security-Policy" in out.read_text()


def test_a_picture_and_the_numbers_stand_beside_the_page(cli, decoder, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "report.html"
    code, said, err = cli("explain", decoder, "a $cat$", "--method", "grad", "--out", out, "--beside", "png", "json")
    assert code == 0, err
    assert said.splitlines()[-3:] == [str(out.with_suffix(f".{kind}")) for kind in ("html", "png", "json")]
    assert out.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads(out.with_suffix(".json").read_text())["attribution"]["method"] == "grad"
    code, _, err = cli("explain", decoder, "a cat", "--beside", "gif")
    assert code == 2 and "gif" in err


def test_json_has_the_numbers(cli, encoder):
    code, said, err = cli("explain", encoder, "a cat", "--json", "--method", "grad", "--at", 1)
    assert code == 0, err
    made = json.loads(said)
    assert made["attribution"]["method"] == "grad" and made["at"] == 1 and "maps" not in made
    assert "not the sum of its branches" in err


def test_a_contrast_keeps_the_space(cli, decoder):
    code, said, err = cli("explain", decoder, "a cat", "--json", "--method", "grad", "--for", "a - b")
    assert code == 0 and json.loads(said)["target"] == "a - b", err


def test_a_picture_has_patches(cli, tmp_path):
    picture = pytest.importorskip("PIL.Image")
    model = af.build("vit", "tiny", seed=0)
    model.processor = ImageProcessor(size=(16, 16))
    model.save(tmp_path / "vit")
    picture.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    code, _, err = cli("explain", tmp_path / "vit", tmp_path / "a.png", "--out", tmp_path / "a.html")
    assert code == 0, err
    assert "data:image/png;base64," in (tmp_path / "a.html").read_text()
    code, _, err = cli("explain", tmp_path / "vit", "a cat")
    assert code == 2 and "'a cat' is no file, and this model reads pixel_values" in err


def test_a_picture_is_no_text(cli, decoder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    code, _, err = cli("explain", decoder, tmp_path / "a.png")
    assert code == 2 and "is a file, and this model reads input_ids, a text: pass its words" in err


def test_mistakes_are_one_line(cli, decoder):
    for words, message in (
        (["a cat", "--for", "cat"], "'cat' is 3 tokens"),
        (["a cat", "--method", "lime"], "method: expected ig, grad, occlusion, relevance; got 'lime'"),
        (["a cat", "--at", "99"], "at=99: there are the positions 0 to 4"),
        (["a cat", "--baseline", "blur"], "baseline 'blur' is one of pictures"),
    ):
        code, _, err = cli("explain", decoder, *words, "--json")
        assert code == 2 and message in err, (words, err)


def test_relevance_prints_its_ledger(cli, decoder, tmp_path):
    code, said, err = cli("explain", decoder, "a cat", "--method", "relevance", "--out", tmp_path / "a.html")
    assert code == 0, err
    assert "ledger" in said and "blocks.0" in said and "routers of experts: half" in said
    code, said, err = cli("explain", decoder, "a cat", "--method", "relevance", "--json")
    made = json.loads(said)["attribution"]
    total = sum(made["ledger"]["inputs"].values()) + sum(made["ledger"]["added"].values())
    assert total == pytest.approx(made["score"], rel=1e-4) and made["ledger"]["rows"]


def test_roles_and_neurons_are_sections(cli, decoder, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat sat on a mat\n\na dog sat on a cat, and a mat\n")
    out = tmp_path / "a.html"
    for method, word in (("roles", "the position before"), ("neurons", "ffn")):
        code, said, err = cli("explain", decoder, "a cat", "--method", method, "--texts", texts, "--out", out)
        assert code == 0 and word in said, err
        assert f'"{method}":' in out.read_text()
    code, _, err = cli("explain", decoder, "a cat", "--texts", texts)
    assert code == 2 and "add --method roles or --method neurons" in err
