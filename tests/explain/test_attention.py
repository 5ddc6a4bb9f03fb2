"""Attention pictures: every page, every view, and a forward pass that does not notice."""

import re
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.contract.subjects import HEAVY, first_of
from anyformer.core import pages
from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.taps import Taps
from anyformer.explain import attention_picture
from anyformer.explain.attention import kinds as maps_of
from anyformer.explain.labels import label
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.parts import Attention, JointAttention, Mamba
from anyformer.parts.embeddings import Cells
from tests.later import later

plt = pytest.importorskip("matplotlib.pyplot")
IDS = [5, 6, 7, 8, 9, 10]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, as matplotlib has them."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *args, **kwargs: figures.append(figure))
    return figures


def _inputs(model):
    required = [name for name, read in model.inputs().items() if read.required]
    if len(required) > 1 and not model.reads_source and not model.alike:
        return {"inputs": model.example(1, {}, torch.Generator().manual_seed(0))}
    if not model.reads_text:
        made = model.example(1, {}, torch.Generator().manual_seed(0))
        answer = {"answer": [3, 4, 5]} if model.reads_source else {}
        return {"inputs": made if len(model.entrances()[0].front.inputs()) > 1 else made[model.takes], **answer}
    if model.reads_source and not model.generates:  # its target is no text: codes of music
        return {"inputs": model.example(1, {}, torch.Generator().manual_seed(0))}
    return {"inputs": IDS, "answer": [3, 4, 5]} if model.reads_source else {"inputs": IDS}


def _maps(figure):
    """Title -> the array that its axes show."""
    figures = [*figure.subfigs, figure]
    return {a.get_title(): a.images[0].get_array() for f in figures for a in f.axes if a.images and a.get_title()}


WITH = [n for n in pages.names() if maps_of(pages.empty(af.recipe(n, "tiny")))]


FIRST = [n for n in WITH if f"{n}/tiny" in first_of(Mixer) | HEAVY]  # one page of each mixer in each skeleton


@pytest.mark.parametrize("name", [*FIRST, *later(*(n for n in WITH if n not in FIRST))])
@pytest.mark.parametrize("view", [{"layer": 1}, *later({}, {"head": 0}, {"layer": -1, "head": -1})], ids=str)
def test_every_page_with_attention_is_drawn_and_looking_changes_nothing(name, view, tmp_path):
    model = af.build(name, "tiny", seed=0).eval()
    ask, kinds = model.complete(model.example(1, {}, torch.Generator().manual_seed(0))), Attention | JointAttention
    with torch.no_grad():
        before = _seen(model(**ask))
        with Taps(model, *(f"{n}.weights" for n, m in model.named_modules() if isinstance(m, kinds))):
            during = _seen(model(**ask))
    view = {"layer": 0} if view == {"layer": 1} and name in ("dalle", "detr", "lxmert") else view  # none of that number
    path = attention_picture(model, path=tmp_path / "deep" / "a.png", **_inputs(model), **view)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    image = plt.imread(path)
    assert image.shape[0] > 200 and image.shape[1] > 200 and image[..., :3].std() > 0.01
    with torch.no_grad():
        after = _seen(model(**ask))
    assert torch.equal(before, during) and torch.equal(before, after)
    assert model.taps is None


def _seen(out):
    return out.hidden if out.logits is None else out.logits


def test_the_picture_shows_the_weights(drawn, tmp_path):
    model = af.build("gpt", "tiny", seed=0).eval()
    with torch.no_grad(), Taps(model, "blocks.1.mixer.weights") as taps:
        model(torch.tensor([IDS]))
    weights = taps["blocks.1.mixer.weights"][0]
    attention_picture(model, IDS, tmp_path / "a.png", layer=1)
    attention_picture(model, IDS, tmp_path / "a.png")
    heads, means = map(_maps, drawn)
    assert list(heads) == [f"layer 1, head {i}" for i in range(4)]
    for i in range(4):
        torch.testing.assert_close(torch.tensor(heads[f"layer 1, head {i}"].filled(0)), weights[i])
    torch.testing.assert_close(torch.tensor(means["layer 1, mean of 4 heads"].filled(0)), weights.mean(0))
    hidden = torch.tensor(heads["layer 1, head 0"].mask)
    assert torch.equal(hidden, torch.ones(6, 6).triu(1).bool())  # the future is grey, and nothing else


def test_rows_are_the_answer(drawn, tmp_path):
    model = af.build("llama", "tiny", seed=0).eval()
    attention_picture(model, IDS, tmp_path / "a.png", answer=[1, 2], layer=0, head=0)
    (shown,) = _maps(drawn[0]).values()
    assert shown.shape == (2, 8)
    axes = drawn[0].subfigs[0].axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "2"]
    assert [t.get_text() for t in axes.get_xticklabels()] == [str(i) for i in [*IDS, 1, 2]]


def test_an_encoder_decoder_has_three_kinds(drawn, tmp_path):
    model = af.build("t5", "tiny", seed=0).eval()
    attention_picture(model, IDS, tmp_path / "a.png", answer=[1, 2], layer=0, head=1)
    shapes = [f.axes[0].images[0].get_array().shape for f in drawn[0].subfigs]
    assert shapes == [(6, 6), (3, 3), (3, 6)]


def test_an_image_is_a_grid_of_patches(drawn, tmp_path):
    model = af.build("vit", "tiny", seed=0).eval()
    attention_picture(model, torch.rand(1, 3, 24, 16), tmp_path / "a.png", layer=0)
    shapes = {t.split("\n")[0]: m.shape for t, m in _maps(drawn[0]).items()}
    assert shapes.pop("the image, brightness stretched")[:2] == (24, 16)
    assert set(shapes.values()) == {(6, 4)} and len(shapes) == 4


def test_windows_are_put_together_on_the_grid_of_their_stage(drawn, tmp_path):
    model: Any = af.build("swin", "tiny", seed=0).eval()
    pixels = torch.rand(1, 3, 28, 21)  # 7 x 6 cells in windows of 3, then 4 x 3
    attention_picture(model, pixels, tmp_path / "a.png")
    maps = {t.split("\n")[0]: torch.tensor(m) for t, m in _maps(drawn[0]).items()}
    del maps["the image, brightness stretched"]
    means = {"layer 0, mean of 4 heads": (7, 6), "layer 1, mean of 4 heads": (7, 6), "layer 2, mean of 2 heads": (4, 3)}
    assert {title: tuple(m.shape) for title, m in maps.items()} == means
    mixer = model.stages[0].blocks[1].mixer
    flow = Flow(torch.arange(42))
    flow.put(Cells(7, 6, 0))
    inner: list[torch.Tensor] = []
    mixer.inside.register_forward_hook(lambda m, inputs, y: inner.append(inputs[0]))
    mixer(torch.arange(42.0)[None, :, None].expand(1, 42, 16), flow)
    torch.testing.assert_close(mixer.joined(inner[0], 7, 6)[0, :, :, 0].flatten(), torch.arange(42.0))  # back in place
    uniform: Any = af.build(af.recipe("swin", "tiny", depths=(1, 1), window=6), seed=0)
    with torch.no_grad():
        for attention in (m for m in uniform.modules() if isinstance(m, Attention)):
            attention.q.weight.zero_()
    attention_picture(uniform, torch.rand(1, 3, 24, 24), tmp_path / "b.png", layer=0)
    flat = [m for t, m in _maps(drawn[1]).items() if t.startswith("layer")]
    assert len(flat) == 4 and all(abs(m - 1 / 36).max() < 1e-6 for m in flat)  # every patch sees every other alike


def test_a_hybrid_shows_the_layers_that_have_attention(drawn, tmp_path):
    model = af.build(af.recipe("llama", "tiny", depth=4).but({"blocks.1::2.mixer": Mamba.of()}), seed=0).eval()
    attention_picture(model, IDS, tmp_path / "a.png")
    assert list(_maps(drawn[0])) == ["layer 0, mean of 4 heads", "layer 2, mean of 4 heads"]
    with pytest.raises(ValueError, match=re.escape("layer 1 has no attention; layers with attention: 0, 2")):
        attention_picture(model, IDS, tmp_path / "a.png", layer=1)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("reformer", {"inputs": IDS}, "no attention to draw; its mixers are LSHAttention"),
        ("gpt", {"inputs": IDS, "layer": 9}, "layer 9 has no attention; layers with attention: 0, 1"),
        ("gpt", {"inputs": IDS, "head": 4}, "heads 0 to 3"),
        ("gpt", {"inputs": "text"}, "no tokenizer"),
        ("gpt", {"inputs": []}, "at least one token"),
        ("bert", {"inputs": IDS, "answer": [1]}, "writes no answer"),
        ("t5", {"inputs": IDS}, "pass answer="),
        ("vit", {"inputs": IDS}, "pixel_values of shape"),
    ],
)
def test_refusals(name, given, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        attention_picture(af.build(name, "tiny"), path=tmp_path / "a.png", **given)
    assert not list(tmp_path.iterdir())


def test_labels_can_be_read():
    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat\n" * 50], 300)
    shown = {label(tokenizer, i) for i in tokenizer.encode("the cat\n\t on", special=False)}
    assert any(s.startswith("␣") for s in shown) and "⏎" in shown and "⇥" in shown
    assert label(tokenizer, tokenizer.eos_ids.copy().pop()) == "<|endoftext|>"
    assert label(tokenizer, 10**6) == "1000000"  # a row of the model's table that no token has
    half = tokenizer.encode("é", special=False)[0]
    assert "\ufffd" not in label(tokenizer, half)
