"""Positions: each against its published code, any of them in any page, and what they refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.core.recipe import Recipe
from anyformer.parts import (
    Alibi,
    Axial,
    ConvPositions,
    Decay,
    Distances,
    Forget,
    Learned,
    Relative,
    RelativeBias,
    Rotary,
    Rotary2D,
    Sines2D,
    Sinusoidal,
)  # fmt: skip
from anyformer.parts.embeddings import Cells
from anyformer.parts.positions import Linear, YaRN
from tests.parts.mixing import flow, made, run, slopes_are_right, step_by_step

NONE: dict[str, Any] = {"embed.positions": None, "**.mixer.positions": None}
SCHEMES: dict[str, dict[str, Any]] = {
    "learned": {"embed.positions": Learned.of(context=64)},
    "sinusoidal": {"embed.positions": Sinusoidal.of()},
    "axial": {"embed.positions": Axial.of(shape=[8, 8])},
    "axial, joined": {"embed.positions": Axial.of(shape=[4, 16], widths=[20, 12])},
    "convolution": {"entry": ConvPositions.of(width=5, groups=4)},
    "rotary": {"**.mixer.positions": Rotary.of()},
    "rotary in part": {"**.mixer.positions": Rotary.of(fraction=0.5, pairs="adjacent")},
    "rotary, linear": {"**.mixer.positions": Rotary.of(scaling=Linear(2.0))},
    "rotary, YaRN": {"**.mixer.positions": Rotary.of(scaling=YaRN(4.0, 16))},
    "T5": {"bias": RelativeBias.of(heads=4, buckets=8, far=20)},
    "Transformer-XL": {"**.mixer.scores": [Relative.of()]},
    "ALiBi": {"**.mixer.scores": [Alibi.of()]},
    "decay": {"**.mixer.scores": [Decay.of(shape="log", learned=True)]},
    "distances": {"**.mixer.scores": [Distances.of(far=9)]},
    "forgetting": {"**.mixer.scores": [Forget.of()]},
}
PAGES = {"llama": {}, "gpt": {}, "bert": {"task": "masked"}}
EVERY = [(page, name) for page in PAGES for name in SCHEMES if (page, name) != ("bert", "forgetting")]


def model(page: str, name: str) -> Any:
    """The page with all its positions taken out and others put in: one line."""
    recipe = af.recipe(page, "tiny", **PAGES[page]).but({**NONE, **SCHEMES[name]})
    made = af.build(recipe, seed=0).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.3)
    return made


@pytest.mark.parametrize(("page", "name"), EVERY)
@torch.no_grad()
def test_any_page_takes_any_positions(page: str, name: str) -> None:
    net = model(page, name)
    ids = torch.randint(0, 128, (2, 13), generator=torch.Generator().manual_seed(0))
    whole = net(ids).logits
    other = net(ids[:, [0, 2, 1, *range(3, 13)]]).logits
    assert not torch.allclose(other[:, -1], whole[:, -1], atol=1e-4)  # the order counts, for a token that stays
    for side in ("left", "right"):  # batch = solo
        keep = torch.ones(2, 13, dtype=torch.bool)
        keep[1, slice(0, 5) if side == "left" else slice(8, 13)] = False
        both = net(ids, attention_mask=keep).logits
        torch.testing.assert_close(both[0], whole[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(both[1][keep[1]], net(ids[1:, keep[1]]).logits[0], atol=1e-4, rtol=1e-4)
    if page == "bert":
        assert not torch.allclose(net(ids[:, :9]).logits, whole[:, :9], atol=1e-4)  # it sees both ways
        return
    torch.testing.assert_close(net(ids[:, :9]).logits, whole[:, :9], atol=1e-4, rtol=1e-4)  # causal
    for pieces in ([1] * 13, [6, 1, 6]):  # cached = uncached
        state, at, rows = net.start(2), 0, []
        for n in pieces:
            rows.append(net(ids[:, at : at + n], state=state).logits)
            at += n
        torch.testing.assert_close(torch.cat(rows, 1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["convolution", "T5", "axial, joined"])
def test_files_keep_them(name: str, tmp_path: Any) -> None:
    net, ids = model("gpt", name), torch.arange(20)[None]
    net.save(tmp_path)
    assert af.load(str(tmp_path)).recipe == net.recipe
    with torch.no_grad():
        torch.testing.assert_close(af.load(str(tmp_path))(ids).logits, net(ids).logits)


def test_without_positions_an_encoder_sees_a_bag() -> None:
    net = af.build(af.recipe("bert", "tiny", task="masked").but(NONE), seed=0).eval()
    ids, order = torch.randint(0, 128, (1, 13)), torch.randperm(13)
    torch.testing.assert_close(net(ids[:, order]).logits, net(ids).logits[:, order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scheme", [
    {}, {"embed.positions": Sines2D.of()}, {"embed.positions": None, "**.mixer.positions": Rotary2D.of()},
    {"embed.positions": Sines2D.of(theta=100.0), "**.mixer.positions": Rotary2D.of(pairs="adjacent")},
], ids=["learned", "sines", "rotary", "both"])  # fmt: skip
@torch.no_grad()
def test_images(scheme: dict[str, Any]) -> None:
    """The class token tells two images apart that have the same patches in other places, also at another size."""
    net = af.build(af.recipe("vit", "tiny").but(scheme), seed=0).eval()
    for parameter in net.parameters():
        parameter.normal_(0.0, 0.3)
    for height, width in ((16, 16), (12, 20)):
        image = torch.randn(1, 3, height, width)
        logits = net(pixel_values=image).logits
        for moved in (image.roll(4, 2), image.roll(4, 3)):
            assert not torch.allclose(net(pixel_values=moved).logits, logits, atol=1e-3)


def on_grid(rows: int, columns: int) -> Flow:
    flow = Flow(torch.arange(1 + rows * columns))
    flow.put(Cells(rows, columns))
    return flow


def test_rotary_2d_tells_rows_from_columns_and_goes_by_distances_alone() -> None:
    rotary, q, k = Rotary2D.of().build(8), torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    cells = on_grid(4, 5)
    turned = [rotary(t.expand(1, 21, 1, 8), cells)[0, 1:, 0].view(4, 5, 8) for t in (q, k)]
    score = torch.einsum("abk,cdk->abcd", *turned)  # query at (a, b), key at (c, d)
    torch.testing.assert_close(score[1:, :, 1:], score[:-1, :, :-1])
    torch.testing.assert_close(score[:, 1:, :, 1:], score[:, :-1, :, :-1])
    assert not torch.allclose(score[0, 0, 1, 0], score[0, 0, 0, 1])


def theirs(name: str) -> Any:
    return pytest.importorskip(f"transformers.models.{name}.modeling_{name}", reason="needs transformers")


def test_rotary_2d_is_qwens() -> None:
    code, config = theirs("qwen2_vl"), pytest.importorskip("transformers").Qwen2VLConfig().vision_config
    config.embed_dim, config.num_heads, config.num_attention_heads = 24, 2, 2
    x = torch.randn(1, 12, 2, 12)
    cells = torch.stack((torch.arange(12) // 4, torch.arange(12) % 4), -1)
    cos, sin = code.Qwen2VLVisionRotaryEmbedding(config)(x, cells)
    expected, _ = code.apply_rotary_pos_emb_vision(x[0], x[0], cos, sin)
    padded = torch.cat((torch.zeros(1, 1, 2, 12), x), 1)  # the class token
    found = Rotary2D.of(theta=config.rope_parameters["rope_theta"]).build(12)(padded, on_grid(3, 4))
    torch.testing.assert_close(found[0, 1:], expected)


def test_partial_rotary_is_neoxs() -> None:
    code, names = theirs("gpt_neox"), pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    config = names.GPTNeoXConfig(hidden_size=48, num_attention_heads=3, rope_parameters=rope)
    x = torch.randn(2, 9, 3, 16)
    cos, sin = code.GPTNeoXRotaryEmbedding(config)(x, torch.arange(9)[None])
    expected, _ = code.apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    torch.testing.assert_close(Rotary.of(fraction=0.25).build(16)(x, flow(9)), expected.transpose(1, 2))


def test_interleaved_rotary_is_gptjs() -> None:
    code, x = theirs("gptj"), torch.randn(2, 9, 3, 16)
    sin, cos = code.create_sinusoidal_positions(9, 8)[None].chunk(2, -1)
    expected = torch.cat((code.apply_rotary_pos_emb(x[..., :8], sin, cos), x[..., 8:]), -1)
    torch.testing.assert_close(Rotary.of(fraction=0.5, pairs="adjacent").build(16)(x, flow(9)), expected)


def test_axial_is_reformers() -> None:
    config = pytest.importorskip("transformers").ReformerConfig(
        axial_pos_shape=(3, 4), axial_pos_embds_dim=(5, 7), hidden_size=12
    )
    there, ours = theirs("reformer").AxialPositionEmbeddings(config).eval(), Axial.of([3, 4], [5, 7]).build(12)
    there.weights[0].data, there.weights[1].data = ours.rows.data[:, None], ours.columns.data[None]
    ids = torch.tensor([[0, 3, 4, 11], [5, 5, 1, 2]])
    torch.testing.assert_close(ours(ids), there(ids))
    added = Axial.of([3, 4]).build(12)
    torch.testing.assert_close(added(ids)[0, 3], added.rows[2] + added.columns[3])


def test_convolution_is_wav2vecs() -> None:
    for width in (8, 5):
        config = pytest.importorskip("transformers").Wav2Vec2Config(
            hidden_size=12, num_conv_pos_embeddings=width, num_conv_pos_embedding_groups=3
        )
        there = theirs("wav2vec2").Wav2Vec2PositionalConvEmbedding(config)
        ours = made(ConvPositions.of(width=width, groups=3), dtype=torch.float32)
        weight = there.conv.parametrizations.weight
        weight.original0.data, weight.original1.data = ours.gain.data[None, None], ours.direction.data
        there.conv.bias.data = ours.bias.data
        x = torch.randn(2, 11, 12)
        torch.testing.assert_close(run(ours, x, causal=False), x + there(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_convolution_alone(groups: int) -> None:
    mixer, x = made(ConvPositions.of(width=4, groups=groups)), torch.randn(2, 11, 12, dtype=torch.float64)
    whole = run(mixer, x)
    for pieces in ([1] * 11, [4, 1, 6]):
        torch.testing.assert_close(step_by_step(mixer, x, pieces), whole)
    for causal in (True, False):
        slopes_are_right(mixer, x[:, :5], causal)
    mixer.reset_parameters()  # at first the length of each tap is its own
    before = mixer.gain.clone()
    torch.testing.assert_close(before, mixer.direction.norm(dim=(0, 1)))


def test_sines_on_a_grid_are_those_of_masked_autoencoders() -> None:
    table = theirs("vit_mae").build_2d_sinusoidal_position_embedding(3, 5, 16)
    expected = torch.cat((table[:, 8:], table[:, :8]), -1)  # as their model does: the column first
    torch.testing.assert_close(Sines2D.of().build(16)(3, 5, torch.device("cpu")), expected)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Axial.of(shape=[4, 0]), "at least 1 each"),
        (Axial.of(shape=[4, 4], widths=[4, 4]), r"add up to the width 12; got \(4, 4\)"),
        (ConvPositions.of(width=0), "at least 1"),
        (ConvPositions.of(groups=5), "groups divide the width 12 of the stream"),
        (Rotary2D.of(), "cannot be divided by 4"),
        (Sines2D.of(), "is odd"),
    ],
)
def test_what_makes_no_sense_is_named(recipe: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.build({Rotary2D: 6, Sines2D: 5}.get(recipe.part, 12))  # type: ignore[arg-type]


def test_what_does_not_fit_says_so() -> None:
    ids = torch.arange(5)[None]
    with pytest.raises(ValueError, match=r"Rotary2D .* reads Cells, which Patches or PatchGrid leaves"):
        af.build(af.recipe("llama", "tiny").but({"**.mixer.positions": Rotary2D.of()}), seed=0)(ids)
    with pytest.raises(ValueError, match=r"Patches.positions: expected a recipe of a Grid or a text or None"):
        af.build(af.recipe("vit", "tiny").but({"embed.positions": Sinusoidal.of()}), seed=0)
    with pytest.raises(ValueError, match="positions must be one of 'learned', None"):
        af.build(af.recipe("vit", "tiny").but({"embed.positions": "sines"}), seed=0)
    packed = af.build(af.recipe("gpt", "tiny").but(SCHEMES["convolution"]), seed=0)
    with pytest.raises(ValueError, match="ConvPositions cannot keep packed documents apart"):
        packed(ids, document_ids=torch.zeros_like(ids))


def test_what_the_page_about_positions_shows_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs/positions.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    exec(compile(code, "docs/positions.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) == 3
