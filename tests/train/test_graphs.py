"""Training on graphs: values and classes, resumed, loaded, asked; bad data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.generate import judge
from anyformer.media.graphs import Graph, graph_of
from anyformer.train import finetune, train


def rows(count: int = 60, classes: bool = False) -> list[dict]:
    """Graphs whose label is their number of edges, or whether they are connected."""
    made = []
    for seed in range(count):
        graph = nx.gnp_random_graph(3 + seed % 4, 0.5, seed=seed)
        label = ("whole" if nx.is_connected(graph) else "parts") if classes else 2.0 * graph.number_of_edges()
        made.append({"nodes": len(graph), "edges": [list(e) for e in graph.edges], "label": label})
    return made


def file(path: Path, content: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def learned(data: Path, out: Path, steps: int = 60, **options):
    return train(
        "graphormer", "tiny", data=data, steps=steps, batch=16, lr=3e-3, out=out, quiet=True, memory=100.0, **options
    )


def test_it_learns_a_value_and_gives_it_in_its_unit(tmp_path):
    data = file(tmp_path / "a.jsonl", rows())
    done = learned(data, tmp_path / "run")
    assert done.task == "graphs" and done.held_out < 0.5 * done.baseline
    graphs = [graph_of(row) for row in rows(8)]
    values: Any = judge(done.model, graphs)
    truth = [row["label"] for row in rows(8)]
    assert np.corrcoef(values, truth)[0, 1] > 0.8 and abs(np.mean(values) - np.mean(truth)) < 3
    again = af.load(done.checkpoint)
    assert again.processor == done.model.processor
    alone: Any = judge(again, graphs, batch=1)
    np.testing.assert_allclose(alone, values, rtol=1e-4, atol=1e-4)


def test_it_learns_a_class_from_whether_a_path_leads_to_every_node(tmp_path, capsys):
    data = file(tmp_path / "a.jsonl", rows(classes=True))
    done = learned(data, tmp_path / "run")
    assert done.held_out < done.baseline and done.model.processor.classes == ("parts", "whole")
    asked = file(tmp_path / "b.jsonl", [{k: v for k, v in row.items() if k != "label"} for row in rows(3)])
    assert main(["predict", str(tmp_path / "run"), str(asked), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 3 and all(abs(sum(one.values()) - 1) < 1e-5 for one in found)


def test_a_trained_model_is_tuned_to_other_graphs(tmp_path):
    start = learned(file(tmp_path / "a.jsonl", rows()), tmp_path / "run", steps=30)
    other = file(tmp_path / "b.jsonl", [{**row, "label": 8 - row["label"]} for row in rows()])
    done = finetune(str(start.checkpoint), data=other, steps=40, lr=1e-2, out=tmp_path / "tuned", quiet=True)
    assert done.task == "graphs" and done.learned < done.parameters
    assert done.after is not None and done.after < done.before
    with pytest.raises(ValueError, match="can be tuned to graphs, task=tag is asked for"):
        finetune(str(start.checkpoint), data=other, task="tag", out=tmp_path / "no", quiet=True)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    data = file(tmp_path / "a.jsonl", rows())
    whole = learned(data, tmp_path / "whole", 6)
    learned(data, tmp_path / "parts", 6, save_every=4)
    more = learned(data, tmp_path / "more", 6, resume=str(tmp_path / "parts" / "step-000004"))
    one, two = whole.model.state_dict(), more.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edges": [[0, 9]]}, "row 5: the edge 0 - 9 leads to nowhere"),
        ({"label": float("inf")}, "row 5: .label. is inf"),
        ({"label": None}, "'label'"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, change, said):
    content = rows(20)
    content[4] |= change
    with pytest.raises(ValueError, match=said):
        learned(file(tmp_path / "a.jsonl", content), tmp_path / "run", 1)


def test_what_reads_no_graphs_is_refused():
    with pytest.raises(ValueError, match="no graphs"):
        judge(af.build("gpt", "tiny"), [Graph(("a",), ())])
    with pytest.raises(ValueError, match="no processor"):
        judge(af.build("graphormer", "tiny"), [Graph(("a",), ())])
