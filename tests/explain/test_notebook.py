"""Recipes, models, taps, masks and runs show themselves in a notebook, and the paths of their trees are right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer.core import pages
from anyformer.explain.notebook import Node, nodes
from anyformer.parts import Attention, Causal, Mamba, Window
from anyformer.train import Settings, fit, objectives

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Treescope were not installed."""
    monkeypatch.setitem(sys.modules, "treescope", None)


def lines(node: Node) -> Iterator[Node]:
    yield node
    for child in node.below:
        yield from lines(child)


@pytest.mark.parametrize("name", pages.names())
def test_the_paths_of_a_recipe_are_those_that_change_it(name: str) -> None:
    recipe = pages.recipe(name)
    shown = [node.path for node in lines(nodes(recipe)) if node.path]
    assert len(shown) > 8 and len(set(shown)) == len(shown)
    for path in shown:
        first = re.sub(r"(\d+):\d+", r"\1", path.replace(".*", ".0"))  # one of those that the path stands for
        assert recipe.but({path: recipe[first]}) == recipe


@pytest.mark.parametrize("name", pages.names())
def test_the_paths_of_a_model_are_those_of_its_modules_and_weights(name: str) -> None:
    model = pages.empty(pages.recipe(name))
    shown = list(lines(nodes(model)))
    modules, weights = dict(model.named_modules()), dict(model.named_parameters())
    assert {n.path for n in shown if n.tensor is not None} == weights.keys()
    assert {n.path for n in shown if n.tensor is None} == modules.keys()


def test_a_layer_that_differs_stands_alone() -> None:
    hybrid = af.recipe("llama", "tiny", depth=6).but({"blocks.2::3.mixer": Mamba.of(state=8)})
    paths = {node.path: node.text for node in lines(nodes(hybrid))}
    assert paths["blocks.0:2"] == "0-1: Block" and paths["blocks.2"] == "2: Block"
    assert paths["blocks.2.mixer"] == "mixer: Mamba" and paths["blocks.2.mixer.state"] == "state = 8"
    assert "blocks.*" in {node.path for node in lines(nodes(af.recipe("llama", "tiny")))}


def test_a_recipe_and_a_model_have_their_wiring_and_their_paths(plain: None) -> None:
    pytest.importorskip("matplotlib")
    model = af.build("llama", "tiny", seed=0)
    for thing, path in ((model.recipe, "blocks.*.mixer.kv_heads"), (model, "blocks.1.mixer.q.weight")):
        shown = thing._repr_html_()
        assert "<svg" in shown and "GatedMLP" in shown
        assert f'<code class="path">{path}</code>' in shown
    assert "23,712" in model._repr_html_() and "up to 64" in model._repr_html_()
    part = Attention.of(heads=4)
    assert "<svg" not in part._repr_html_() and '<code class="path">heads</code>' in part._repr_html_()
    assert '<code class="path">q.weight</code>' in part.build(32)._repr_html_()


def test_a_mask_is_drawn_as_it_is(plain: None) -> None:
    shown = (Causal() & Window(2))._repr_html_()
    places = {(int(x), int(y)) for x, y in re.findall(r'<rect x="(\d+)" y="(\d+)"', shown)}
    assert places == {(k, q) for q in range(24) for k in range(24) if 0 <= q - k <= 2}
    assert "Causal()" in shown and "&amp;" in shown


def test_taps_show_what_they_recorded(plain: None) -> None:
    model = af.build("llama", "tiny", seed=0)
    with af.Taps(model, "blocks.0", "blocks.0.mixer.weights") as taps:
        model(input_ids=torch.tensor([[1, 2, 3]]))
    shown = taps._repr_html_()
    cells = re.findall(r"<td>(.*?)</td>", shown)
    at = cells.index("blocks.0.mixer.weights")
    assert cells[at + 1 : at + 4] == ["1 x 4 x 3 x 3", "float32", f"{1 / 3:.3g}"]  # rows of three that sum to 1
    assert '<code class="path">blocks.0</code>' in shown


def test_a_run_shows_what_it_left_and_its_curves(plain: None, tmp_path: Path) -> None:
    def batch(step: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(9).repeat(2, 1) + step
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}

    done = fit(af.build("gpt", "tiny", seed=0), batch, objectives.causal_lm, Settings(steps=5, warmup=1), out=tmp_path)
    shown = done._repr_html_()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert str(done.checkpoint) in shown and f"loss: {log[-1]['loss']:.4g}" in shown and "over 5 steps" in shown
    points = re.search(r'<polyline points="([^"]*)"', shown)
    assert points is not None and len(points[1].split()) == len(log) == 5
    assert "nan" not in points[1]


def test_what_is_shown_needs_no_network_and_escapes_text(plain: None) -> None:
    model = af.build("gpt", "tiny", seed=0)
    for shown in (model._repr_html_(), model.recipe._repr_html_()):
        assert not re.search(r"(src|href)=[\"']?(https?:)?//", shown)
    renamed = af.recipe("bert").but({"heads": {"<b>": af.parts.Classifier.of(classes=5)}})._repr_html_()
    assert '<code class="path">heads.&lt;b&gt;</code>' in renamed and "<b>" not in renamed


def test_treescope_draws_the_tree_and_copies_our_paths() -> None:
    treescope = pytest.importorskip("treescope")
    model = af.build("llama", "tiny", seed=0)
    for thing, path in ((model, "blocks.1.mixer.q.weight"), (model.recipe, "blocks.*.mixer.kv_heads")):
        for shown in (thing._repr_html_(), treescope.render_to_html(thing, compressed=False)):
            assert f'"{path}"' in shown or f"&quot;{path}&quot;" in shown or path in shown
    assert "CausalLM(" in treescope.render_to_text(model)
    assert "Window(left=2, right=0)" in treescope.render_to_text(Window(2))
    huge = pages.empty(pages.recipe("llama", "7b"))
    assert "q: Linear(weight: float32 4096 x 4096)" in re.sub(r"\s+", " ", treescope.render_to_text(huge))


def test_core_does_not_import_it() -> None:
    code = "import sys, anyformer.core.recipe, anyformer.parts; print('anyformer.explain.notebook' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_the_example_runs_and_every_cell_shows_something(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)  # the file itself has none
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        "".join(o["data"].get("text/html", "") for o in c.outputs if "data" in o)
        for c in book.cells
        if c.cell_type == "code"
    ]
    assert len(shown) == 5 and all('class="af"' in text for text in shown)
    for text, says in zip(
        shown, ("blocks.2", "23,712", "Global(tokens=2)", "blocks.0.mixer.weights", "over 40 steps"), strict=True
    ):
        assert says in text
