"""A task read from a file: parts that do not meet, tokenizers that are beginnings of each other, metrics as others have
them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from anyformer.edge import task as tasks
from anyformer.edge.medium import Texts
from anyformer.edge.pieces import tokenizers

rows = [{"text": f"word{i % 7} is {'good' if i % 3 else 'bad'} {i}", "label": i % 3} for i in range(120)]


def written(path: Path, content: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
    return path


def test_metrics_equal_an_independent_computation() -> None:
    from scipy.stats import pearsonr, spearmanr

    noise = np.random.default_rng(0)
    logits, labels = noise.normal(size=(200, 4)), noise.integers(0, 4, 200)
    answers = logits.argmax(1)
    assert tasks.accuracy(logits, labels) == pytest.approx(sum(answers == labels) / 200)
    each = []
    for c in range(4):
        precision = (labels[answers == c] == c).mean()
        recall = (answers[labels == c] == c).mean()
        each.append(2 * precision * recall / (precision + recall))
    assert tasks.f1(logits, labels) == pytest.approx(np.mean(each))
    scores, wanted = noise.integers(0, 9, 200) * 1.0, noise.normal(size=200).round(1)
    assert tasks.pearson(scores[:, None], wanted) == pytest.approx(pearsonr(scores, wanted)[0])
    assert tasks.spearman(scores[:, None], wanted) == pytest.approx(spearmanr(scores, wanted)[0])
    assert tasks.pearson(np.ones((9, 1)), np.arange(9.0)) == 0.0


def test_parts_do_not_meet_and_are_all(tmp_path: Path) -> None:
    made = tasks.read(written(tmp_path / "a.jsonl", rows), "accuracy", Texts(8))
    texts = [set(p.items) for p in made.parts.values()]
    assert [len(t) for t in texts] == [96, 12, 12] and len(set.union(*texts)) == 120
    assert made.classes == ("0", "1", "2") and made.outputs == 3
    again = tasks.read(tmp_path / "a.jsonl", "pearson", Texts(8))
    learned = again.parts["learn"].labels
    assert float(learned.mean()) == pytest.approx(0, abs=1e-6) and float(learned.std()) == pytest.approx(1)
    assert float(learned[0]) * again.deviation + again.mean == pytest.approx(
        int(made.parts["learn"].labels[0]), abs=1e-6
    )


def test_a_smaller_tokenizer_is_the_beginning_of_the_largest(tmp_path: Path) -> None:
    made = tasks.read(written(tmp_path / "a.jsonl", rows), "accuracy", Texts(8))
    sizes = tokenizers(made.parts["learn"].items, (48, 64), tmp_path / "tokenizer.json")
    small, large = (sizes[n].core.get_vocab() for n in (48, 64))
    assert len(small) <= 48 and all(large[token] == i for token, i in small.items())
    again = tokenizers(["other text"], (64,), tmp_path / "tokenizer.json")  # kept, not made again
    assert again[64].core.get_vocab() == large
    assert isinstance(made.medium, Texts)
    made.medium.tokenizers |= sizes
    batch = made.medium.batch(made.parts["test"], 48, [0, 1])
    assert batch["input_ids"].shape[1] <= 8 and int(batch["input_ids"].max()) < 48
    answers = made.answers(
        lambda input_ids, attention_mask: (input_ids * attention_mask).sum(1, keepdim=True), made.parts["test"], 48
    )
    alone = [sum(ids) for ids in made.medium.ids(made.parts["test"], 48)]
    assert answers[:, 0].tolist() == alone  # in the order of the rows, whatever the order of batches


@pytest.mark.parametrize(
    ("content", "metric", "says"),
    [
        (rows[:1], "accuracy", "has 1 rows; a design needs at least 50"),
        ([{**r, "label": "a"} for r in rows], "f1", "has one class only, 'a'"),
        ([{**r, "label": "a"} for r in rows], "pearson", "row 1: the label 'a' is no number"),
        ([{**r, "label": 2} for r in rows], "pearson", "every label is 2"),
        ([{**r, "label": i / 7} for i, r in enumerate(rows)], "accuracy", "120 classes for 120 rows, numbers perhaps"),
        (rows, "bleu", "--metric must be one of accuracy, f1, pearson, spearman, bits, got 'bleu'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_task_is_refused(content: list, metric: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        tasks.read(written(tmp_path / "a.jsonl", content), metric, Texts(8))
    assert says in str(error.value)


def test_the_interval_holds_the_metric(tmp_path: Path) -> None:
    made = tasks.read(written(tmp_path / "a.jsonl", rows), "pearson", Texts(8))
    part = made.parts["learn"]
    answers = (part.labels + torch.randn(len(part.labels), generator=torch.Generator().manual_seed(0)))[:, None]
    low, high = made.interval(answers, part)
    assert low < made.measure(answers, part) < high
    r, n = made.measure(answers, part), len(part.labels)
    fisher = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(n - 3))
    assert [low, high] == pytest.approx(fisher, abs=0.05)
