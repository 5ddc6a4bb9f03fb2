"""The film of a run: right numbers, the same run with and without it, resumed, and mistakes before the first step."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.train import train
from anyformer.train.film import FRAMES, Film, paths_of, shape_of

RUN: dict[str, Any] = {"size": "tiny", "steps": 12, "batch": 2, "tokenizer": "bytes", "eval_every": 0, "quiet": True}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "a.txt"
    file.write_text("the cat sat on the mat, and the dog lay by the log. " * 80)
    return file


def _frames(folder):
    return [json.loads(line) for line in (folder / "film.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model", ["llama", "bert", "t5", "mamba"])
def test_a_run_is_the_same_with_a_film(model, data, tmp_path):
    look = ["decoder.blocks.*", "encoder.blocks.*"] if model == "t5" else ["blocks.*"]
    for name, more in dict[str, dict[str, Any]](plain={}, film={"look": look}).items():
        train(model, data=data, out=tmp_path / name, **RUN, **more)
    plain, filmed = (af.load(tmp_path / name / "step-000012").state_dict() for name in ("plain", "film"))
    assert all(torch.equal(plain[key], filmed[key]) for key in plain)
    frames = _frames(tmp_path / "film")
    assert [f["step"] for f in frames] == list(range(1, 13)) and not (tmp_path / "plain" / "film.html").exists()
    assert all(v > 0 for f in frames for v in f["gradients"].values()) and len(frames[0]["gradients"]) >= 2
    heads = [v for f in frames for m in f["heads"].values() for v in (*m["entropy"], *m["sharpness"])]
    assert (model == "mamba") == (not heads) and all(0 <= v <= 1.0001 for v in heads)
    page = (tmp_path / "film" / "film.html").read_text()
    assert page.startswith("<!doctype html>") and "http" not in page.replace("http-equiv", "") and len(page) < 3_000_000


def test_a_resumed_run_goes_on_with_its_film(data, tmp_path):
    more: dict[str, Any] = {"look": ["blocks.0"], "save_every": 6}
    train("llama", data=data, out=tmp_path / "whole", **RUN, **more)
    train("llama", data=data, out=tmp_path / "two", **{**RUN, "steps": 12}, **more)
    two = tmp_path / "two"
    for row in ("film.jsonl",):  # as a kill behind step 9 leaves it
        lines = (two / row).read_text().splitlines(True)
        (two / row).write_text("".join(lines[:9]))
    shutil.rmtree(two / "step-000012")
    train("llama", data=data, out=two, **RUN, **more, resume=True)
    assert [f["step"] for f in _frames(two)] == list(range(1, 13))
    for one, other in zip(_frames(tmp_path / "whole"), _frames(two), strict=True):
        assert one["gradients"] == other["gradients"]


def test_gradients_are_those_of_the_step_and_frames_are_few(tmp_path):
    model = af.build("llama", "tiny", seed=0)
    film = Film(tmp_path, model, ["blocks.*", "embed"], steps=10 * FRAMES)
    ids = torch.randint(0, 128, (4, 12), generator=torch.Generator().manual_seed(0))
    for step in range(1, 31):
        model.zero_grad()
        loss = model(ids).logits.square().mean()
        loss.backward()
        film.on_gradients(step, model, {"input_ids": ids, "labels": ids}, loss.detach())
        assert model.training and model.taps is None
    film.close()
    assert [f["step"] for f in _frames(tmp_path)] == [1, 11, 21]
    whole = math.sqrt(sum(float(p.grad.square().sum()) for p in model.blocks[1].parameters() if p.grad is not None))
    assert _frames(tmp_path)[-1]["gradients"]["blocks.1"] == pytest.approx(whole, rel=1e-3)
    assert film.probe is not None and len(film.probe["input_ids"]) == 2


def test_entropy_and_sharpness_of_known_weights():
    even = torch.ones(1, 1, 4, 4).tril()
    even = even / even.sum(-1, keepdim=True)
    one = torch.zeros(1, 1, 4, 4)
    one[..., 0] = 1.0
    both = shape_of(torch.cat((even, one + 1e-9), 1))
    assert both["entropy"][0] == pytest.approx(1, abs=1e-3) and both["entropy"][1] == pytest.approx(0, abs=1e-3)
    assert both["sharpness"][1] == pytest.approx(1, abs=1e-3)
    assert both["sharpness"][0] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3, abs=1e-3)


def test_a_wrong_pattern_is_named_and_nothing_is_written(data, tmp_path):
    with pytest.raises(ValueError, match=r"look: 'block\.\*' fits no part with weights"):
        train("llama", data=data, out=tmp_path / "run", **RUN, look=["block.*"])
    assert not list((tmp_path / "run").glob("film*")) and not list((tmp_path / "run").glob("step*"))
    assert paths_of(af.build("llama", "tiny"), ["blocks.*.mixer"]) == ["blocks.0.mixer", "blocks.1.mixer"]
