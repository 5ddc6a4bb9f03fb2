"""lm-eval, the harness itself in a process of its own, against the server: its numbers are those of the model, and of
`anyformer eval` on the same file."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

import anyformer as af
from anyformer.evaluate import evaluate

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is no package of `dev`: pip "
                       "install 'lm-eval[api]'")
]  # fmt: skip
ROWS = [("the cat sat on the", [" mat", " quickly", " of"], 0), ("two and two are", [" four", " for", " of the"], 0),
        ("a dog", [" barks", " a", " the the"], 1), ("é is a", [" letter", " leader", " x"], 2)]  # fmt: skip
CHOICE = """
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}, {{metric: acc_bytes}}]
"""


def test_multiple_choice_is_scored_as_the_model_scores_it(server, folders, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": t, "choices": c, "label": n}) + "\n" for t, c, n in ROWS))
    (tmp_path / "own.yaml").write_text(CHOICE.format(data=data))
    out = tmp_path / "out"
    arguments = f"base_url={server.url}/v1/completions,model=llama,tokenizer={folders['llama']}"
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments,
         "--tasks", "own_choice", "--include_path", str(tmp_path), "--output_path", str(out),
         "--log_samples", "--batch_size", "1"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr[-2000:]
    samples = next(out.rglob("samples_*.jsonl")).read_text().splitlines()
    model = af.load(folders["llama"])
    ours_of = evaluate(model, data, separator="")
    assert [row["label"] for row in ours_of.rows] == [label for *_, label in ROWS]
    right = 0
    for line in samples:
        sample = json.loads(line)
        ours = [likelihood(model, sample["doc"]["text"], c) for c in sample["doc"]["choices"]]
        theirs = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert theirs == pytest.approx(ours, abs=1e-3)
        assert theirs == pytest.approx(ours_of.rows[sample["doc_id"]]["log_likelihoods"], abs=1e-3)
        right += ours.index(max(ours)) == sample["doc"]["label"]
    results = json.loads(next(out.rglob("results_*.json")).read_text())["results"]["own_choice"]
    assert results["acc,none"] == right / len(ROWS) and len(samples) == len(ROWS)
    assert {f"{name},none": e.value for name, e in ours_of.metrics.items()}.items() <= results.items()


def likelihood(model: af.Model, text: str, choice: str) -> float:
    """The log-probability of a choice behind a text."""
    ids, first = model.tokenizer.encode(text + choice), len(model.tokenizer.encode(text))
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(scores[i - 1, ids[i]] for i in range(first, len(ids))))
