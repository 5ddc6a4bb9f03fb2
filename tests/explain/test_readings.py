"""Pairs, graphs, episodes, proteins and sounds on the command line: what decides has shares, and mistakes are named."""

from __future__ import annotations

import base64
import json
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.explain import Contrast, attribute
from anyformer.explain.poster import poster
from anyformer.explain.proteins import pair_map
from anyformer.explain.reading import read
from anyformer.explain.reading_more import spectrogram
from anyformer.explain.report import report
from anyformer.explain.target import parsed
from anyformer.generate.folding import fold as folded
from anyformer.hub.processors import GraphProcessor, TrajectoryProcessor, WaveProcessor
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import train

COLOURS = ("red", "green", "blue")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Two towers that learned the colour of the left half of a picture; the right half is noise."""
    image = pytest.importorskip("PIL.Image")
    folder, rng, rows = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0), []
    for i in range(90):
        pixels = rng.normal(90, 40, (16, 16, 3))
        pixels[:, :8] = rng.normal(20, 5, (16, 8, 3))
        pixels[:, :8, i % 3] += 200
        image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "text": f"a {COLOURS[i % 3]} one"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"image.depth": 1, "image.channels": 3, "text.depth": 1, "text.end": 0}
    given: dict[str, Any] = {"overrides": changes, "steps": 100, "batch": 16, "lr": 5e-3, "warmup": 10, "vocab": 300}
    done = train("clip", "tiny", task="match", data=folder / "rows.jsonl", out=folder / "run", quiet=True, **given)
    return af.load(done.checkpoint).eval(), folder


@pytest.mark.parametrize("method", ["ig", "occlusion", "relevance"])
def test_a_picture_and_two_texts(pairs, method):
    model, folder = pairs
    right, wrong = "a red one", "a blue one"
    reading = read(model, str(folder / "0.png"), None, parsed(f"{right} - {wrong}"))
    assert reading.kind == "pair" and len(reading.inputs["input_ids"]) == 2 and reading.picture is not None
    made = report(model, reading, None, method, tolerance=0.05, baseline={"pixel_values": "zeros"})
    shares = made.data["attribution"]
    assert made.data["target"] == f"{right} - {wrong}" and shares["score"] > 0
    names = [unit["name"] for unit in shares["inputs"]]
    assert names == ["pixel_values", "input_ids, 1", "input_ids, 2"]
    grid = torch.tensor(shares["inputs"][0]["values"]).reshape(shares["inputs"][0]["rows"], -1)
    half = grid.shape[1] // 2
    if method != "relevance":  # which puts much into biases here
        assert float(grid[:, :half].sum()) > float(grid[:, half:].sum())
    assert made.html().count("</script>") == 2 and json.dumps(made.json())


def test_a_pair_needs_a_text_and_a_picture(pairs):
    model, folder = pairs
    with pytest.raises(ValueError, match="compares a picture with texts; say which: --for"):
        read(model, str(folder / "0.png"))
    with pytest.raises(ValueError, match="'a cat' is no file; this model compares a picture with a text"):
        read(model, "a cat", None, "a cat")


def test_a_graph_has_shares_of_its_nodes(tmp_path):
    model = af.build("graphormer", "tiny", seed=0).eval()
    kinds = tuple("abcdefghijk")
    model.processor = GraphProcessor(kinds, ("one", "two", "three"))
    file = tmp_path / "graphs.jsonl"
    file.write_text(json.dumps({"nodes": ["a", "c", "b"], "edges": [[0, 1, "one"], [1, 2, "two"]]}) + "\n")
    reading = read(model, str(file))
    made = report(model, reading, None, "occlusion")
    unit = made.data["attribution"]["inputs"][0]
    assert reading.kind == "graph" and unit["labels"] == ["a", "c", "b"] and len(unit["values"]) == 3
    assert any(unit["values"])
    file.write_text(json.dumps({"text": "no graph"}) + "\n")
    with pytest.raises(ValueError, match="its first row has neither nodes nor smiles; it has text"):
        read(model, str(file))
    model.processor = None
    with pytest.raises(ValueError, match="no processor, which knows the kinds of nodes"):
        read(model, str(file))


def test_an_episode_is_explained_at_its_last_step(tmp_path):
    model = af.build("decision_transformer", "tiny", seed=0).eval()
    state, action = model.embed.sizes_of["states"], model.embed.sizes_of["actions"]
    model.processor = TrajectoryProcessor((0.0,) * state, (1.0,) * state, action, True, 10.0, 0.0, 10.0, 6, 50)
    rng = np.random.default_rng(0)
    row = {"states": rng.normal(size=(9, state)).tolist(), "actions": [0, 1] * 4 + [0], "rewards": [1.0] * 9}
    file = tmp_path / "episodes.jsonl"
    file.write_text(json.dumps(row) + "\n")
    reading = read(model, str(file))
    assert reading.at == 5 and reading.inputs["timesteps"].tolist() == [[3, 4, 5, 6, 7, 8]]
    assert reading.inputs["returns_to_go"][0, :, 0].tolist() == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    for method in ("occlusion", "relevance"):
        made = report(model, reading, 1, method)
        units = {unit["name"]: unit["values"] for unit in made.data["attribution"]["inputs"]}
        assert {"states", "actions", "returns_to_go"} <= units.keys() and len(units["states"]) == 6
        assert units["actions"][-1] == 0  # the model predicts it, and does not see it
    file.write_text(json.dumps({"states": [1.0], "actions": [0], "rewards": [1.0]}) + "\n")
    with pytest.raises(ValueError, match="expected a state, an action and a reward for each step"):
        read(model, str(file))


def test_a_spectrogram_shows_a_tone_where_it_is(tmp_path):
    rate = 8000
    time = np.arange(rate) / rate
    sound = np.where(time < 0.5, np.sin(2 * np.pi * 1000 * time), np.sin(2 * np.pi * 3000 * time))
    made = spectrogram(sound)
    shown = np.frombuffer(zlib.decompress(base64.b64decode(made["data"])), np.uint8)
    shown = shown.reshape(made["rows"], made["columns"])
    first, last = (shown[:, part].mean(1).argmax() for part in (slice(10, 140), slice(180, 310)))
    assert abs(first / made["rows"] - 0.25) < 0.03 and abs(last / made["rows"] - 0.75) < 0.03
    model = af.build("wav2vec2", "tiny", seed=0).eval()
    model.tokenizer, model.processor = Tokenizer.bytes_level(), WaveProcessor(rate=rate)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((sound * 20_000).astype(np.int16).tobytes())
    reading = read(model, str(tmp_path / "a.wav"))
    assert reading.spectrogram is not None and reading.spectrogram["rows"] == 64
    assert report(model, reading, 3, "grad", at=2).data["spectrogram"]["columns"] > 100


@pytest.mark.parametrize("name", ["esmfold", "alphafold2"])
def test_a_protein_has_shares_of_its_residues_and_maps_of_pairs(name, tmp_path):
    """The maps are those of `fold`, and a share is how far the confidence falls without the residue."""
    model = redrawn(af.build(name, "tiny", seed=0)).eval()
    (tmp_path / "a.fasta").write_text(">a\nMKTAY\n")
    msa = None
    if "msa" in model.inputs():
        msa = str(tmp_path / "a.a3m")
        (tmp_path / "a.a3m").write_text(">a\nMKTAY\n>b\nMKSAY\n")
    (fold,) = folded(model, tmp_path / "a.fasta", msa=msa)
    made = report(model, read(model, str(tmp_path / "a.fasta"), target="2", msa=msa))
    (unit,) = made.data["attribution"]["inputs"]
    assert unit["labels"][:5] == ["M1", "K2", "T3", "A4", "Y5"] and made.data["attribution"]["method"] == "occlusion"
    assert made.data["target"] == "confidence (pLDDT) of K2"
    assert made.data["attribution"]["score"] == pytest.approx(float(fold.plddt[1]), rel=1e-4)
    (without,) = folded(model, ["XKTAY"], msa=None if msa is None else _other(tmp_path))
    assert unit["values"][0] == pytest.approx(float(fold.plddt[1] - without.plddt[1]), abs=2e-3)
    far, errors = made.data["pairs"]
    atoms = fold.positions[:, 1]
    for shown, wanted in ((far, np.linalg.norm(atoms[:, None] - atoms[None], axis=-1)), (errors, fold.pae)):
        numbers = np.frombuffer(zlib.decompress(base64.b64decode(shown["data"])), np.uint8).reshape(5, 5) / 255
        step = (shown["high"] - shown["low"]) / 255
        np.testing.assert_allclose(shown["low"] + numbers * (shown["high"] - shown["low"]), wanted, atol=step)
        assert shown["labels"] == unit["labels"][:5] and shown["cell"] == 1
    assert "pairs" not in made.json() and poster(made.data, tmp_path / "a.png").stat().st_size > 10_000
    for target in ("6", "A", Contrast("1", "2")):
        with pytest.raises(ValueError, match="the number of a residue, 1 to 5"):
            read(model, "MKTAY", target=target)
    (tmp_path / "two.fasta").write_text(">a\nMKT\n>b\nGAV\n")
    with pytest.raises(ValueError, match="holds 2 proteins; explain one"):
        read(model, str(tmp_path / "two.fasta"))
    with pytest.raises(ValueError, match=r"no single table of tokens.*method='occlusion'"):
        attribute(model, {"input_ids": torch.tensor([[1, 2, 3]])}, lambda out: out.beside["pair"][:, 0, 0, 0], "ig")


def _other(folder: Path) -> str:
    """The same alignment of the protein without its first residue."""
    (folder / "b.a3m").write_text(">a\nXKTAY\n>b\nMKSAY\n")
    return str(folder / "b.a3m")


def test_an_alignment_is_of_a_protein():
    with pytest.raises(ValueError, match="msa: an alignment is of a protein"):
        read(af.build("llama", "tiny", seed=0).eval(), "a text", msa="x.a3m")


def test_a_large_map_of_pairs_is_shown_in_cells():
    made = pair_map("x", "Å", np.arange(600.0 * 600).reshape(600, 600), [str(i) for i in range(600)])
    assert (made["side"], made["cell"], len(made["labels"])) == (300, 2, 300)
    assert made["low"] == pytest.approx(np.arange(600.0 * 600).reshape(600, 600)[:2, :2].mean())
