"""WEAT against brute force and with a planted association; pairs of sentences against one pass each."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import anyformer as af
from anyformer.evaluate import evaluate
from anyformer.evaluate.bias import DRAWN, effect, permutation, word_lists
from anyformer.generate import embed
from anyformer.hub.text.tokenizer import Tokenizer

torch.set_num_threads(1)
WORDS = {
    "X": ["aa", "aab", "ba", "aabb"], "Y": ["yz", "zzy", "yy", "zyz"], "A": ["bab", "abba", "bb"], "B": ["zz", "yzz"],
}  # fmt: skip


def made(page: str) -> Any:
    """A tiny model whose tokens are bytes: words of the same letters are alike."""
    model = af.build(page, "tiny", vocab=257, seed=0).eval()
    model.tokenizer = Tokenizer.bytes_level()
    return model


def write(folder: Path, content: Any, name: str = "w.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(content))
    return folder / name


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("page", ["bert", "llama", "mamba", "t5"])
def test_weat_is_its_definition_over_all_splits(page: str, tmp_path: Path) -> None:
    model = made(page)
    result = evaluate(model, write(tmp_path, {"letters": WORDS}), "weat")
    v = {w: embed(model, [w])[0].double().numpy() for some in WORDS.values() for w in some}

    def s(w: str) -> float:
        near, far = (np.mean([cosine(v[w], v[a]) for a in WORDS[k]]) for k in "AB")
        return float(near - far)

    x, y = [s(w) for w in WORDS["X"]], [s(w) for w in WORDS["Y"]]
    assert result.metrics["letters, d"].value == pytest.approx(
        (np.mean(x) - np.mean(y)) / np.std([*x, *y], ddof=1), abs=1e-5
    )
    every, at_least, count = [*x, *y], 0, 0
    for part in itertools.combinations(range(8), 4):
        first, second = [every[i] for i in part], [every[i] for i in range(8) if i not in part]
        at_least += np.mean(first) - np.mean(second) >= np.mean(x) - np.mean(y) - 1e-9
        count += 1
    assert result.details["letters"]["p"] == pytest.approx(at_least / count) and count == 70


def test_a_planted_association_is_found_and_its_opposite_is_not(tmp_path: Path) -> None:
    model = made("bert")
    planted = evaluate(model, write(tmp_path, WORDS), "weat")  # a file of one test
    assert planted.metrics["weat, d"].value > 1.2 and planted.details["weat"]["p"] < 0.05
    turned = evaluate(model, write(tmp_path, {**WORDS, "A": WORDS["B"], "B": WORDS["A"]}), "weat")
    assert turned.metrics["weat, d"].value == pytest.approx(-planted.metrics["weat, d"].value, abs=1e-6)
    assert turned.details["weat"]["p"] > 0.9


def test_without_an_association_p_is_uniform_and_sampled_splits_agree_with_all() -> None:
    noise = np.random.default_rng(0)
    values = [permutation(noise.normal(size=5), noise.normal(size=5), 0)[0] for _ in range(200)]
    assert np.mean(np.array(values) < 0.05) < 0.1 and 0.4 < np.mean(values) < 0.6
    x, y = noise.normal(0.5, 1, 14), noise.normal(size=14)
    p, count = permutation(x, y, 0)
    assert count == DRAWN + 1
    from scipy.stats import permutation_test

    theirs = permutation_test(
        (x, y), lambda a, b: a.mean() - b.mean(), alternative="greater", n_resamples=20_000, rng=1
    )
    assert p == pytest.approx(theirs.pvalue, abs=0.02)
    assert effect(np.ones(3), np.ones(3)) == 0.0


@pytest.mark.parametrize("content, said", [
    ([1, 2], "holds no test"),
    ({"t": {"X": ["a", "b"], "Y": ["c", "d"], "A": ["e", "f"]}}, "t: a test has the sets X, Y, A and B; got A, X, Y"),
    ({"t": {**WORDS, "X": ["a"]}}, "t, X: needs two words or more"),
    ({"t": {**WORDS, "X": ["aa", "aa"]}}, "t, X: needs two words or more, each once"),
    ({"t": {**WORDS, "B": ["bb", "z"]}}, "t: 'bb' is in A and in B"),
    ({"t": {**WORDS, "Y": [1, 2]}}, "t, Y: expected a list of words"),
])  # fmt: skip
def test_word_lists_that_make_no_test_are_named(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        word_lists(write(tmp_path, content))
    (tmp_path / "bad.yaml").write_text("{a: [")
    with pytest.raises(ValueError, match="neither YAML nor JSON"):
        word_lists(tmp_path / "bad.yaml")


def test_pairs_are_the_difference_of_two_passes(tmp_path: Path) -> None:
    model = made("llama")
    model.tokenizer.roles["bos_token"] = "a"
    rows = [("He reads", "She reads", "work"), ("a man ran", "a woman ran", "sport"), ("he sat", "she sat", "sport")]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"first": a, "second": b, "group": g}) + "\n" for a, b, g in rows))
    result = evaluate(model, file)

    def whole(text: str) -> float:
        ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text, special=False)]
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(scores[i - 1, ids[i]]) for i in range(1, len(ids)))

    expected = np.array([whole(a) - whole(b) for a, b, _ in rows])
    found = result.metrics["difference"]
    assert result.task == "templates" and found.value == pytest.approx(expected.mean(), abs=1e-4)
    assert found.high == pytest.approx(expected.mean() + 2 * expected.std(ddof=1) / 3**0.5, abs=1e-4)
    assert result.metrics["difference, sport"].value == pytest.approx(expected[1:].mean(), abs=1e-4)
    assert result.metrics["first_likelier"].value == pytest.approx((expected > 0).mean())


@pytest.mark.parametrize("row, said", [
    ({"first": "he sat", "second": "he sat"}, "row 1: first and second are equal"),
    ({"first": "he sat", "second": "dogs bark"}, "row 1: first and second have no word in common"),
    ({"first": "", "second": "dogs bark"}, "row 1: first is ''"),
])  # fmt: skip
def test_pairs_that_are_none_are_named(row: dict[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=said):
        evaluate(made("llama"), tmp_path / "p.jsonl", "templates")


def test_an_encoder_decoder_has_no_likelihood_of_a_sentence_alone(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"first": "he sat", "second": "she sat"}))
    with pytest.raises(ValueError, match="encoder-decoder has no likelihood"):
        evaluate(made("t5"), tmp_path / "p.jsonl")
