"""Time series: what enters a window and what does not, missing values, the laws, the pages' two decoders."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.parts import AutoCorrelation
from anyformer.parts.series.decomposition import trend
from anyformer.parts.series.distil import Distil
from anyformer.parts.series.laws import LAWS
from anyformer.parts.series.window import Series
from anyformer.train.likelihood import Likelihood

NOISE = torch.Generator


def example(model, rows=2, seed=0):
    return model.example(rows, {}, NOISE().manual_seed(seed))


@pytest.fixture(scope="module", params=["informer", "informer, at once", "autoformer"])
def model(request):
    name, once = request.param.split(", ")[0], "at once" in request.param
    return af.build(name, "tiny", seed=0, **({"start": 4} if once else {})).eval()


@pytest.mark.parametrize("scaling", ["mean", "std", "none"])
def test_the_scale_is_that_of_the_observed_context_alone(scaling):
    front = Series.of(context=4, horizon=2, lags=(1, 3), scaling=scaling).build(8)
    past = torch.tensor([[900.0, 1.0, -800.0, 2.0, -4.0, math.nan, 6.0], [0.0, 5.0, 5.0, *[math.nan] * 4]])
    window = front.window({"past_values": past})
    seen = torch.tensor([2.0, -4.0, 6.0])
    shift, scale = {
        "mean": (0.0, 4.0),
        "std": (4 / 3, float((seen.var(correction=0) + 1e-5).sqrt())),
        "none": (0.0, 1.0),
    }[scaling]
    assert window.shift.flatten().tolist() == pytest.approx([shift, 0.0])
    assert window.scale.flatten().tolist() == pytest.approx([scale, 1.0])  # unseen: 1, not its neighbour's
    assert window.values[0, 0, 0] == pytest.approx((900 - shift) / scale) and bool(window.values.isfinite().all())


def test_neither_the_future_nor_the_content_of_what_is_missing_enters(model):
    inputs = example(model)
    before = model(**inputs)
    gone = inputs["past_observed_mask"] == 0
    assert bool(gone.any())
    blank = {**inputs, "past_values": inputs["past_values"].masked_fill(gone, math.nan)}
    wild = {**inputs, "past_values": inputs["past_values"].masked_fill(gone, 1e9)}
    alone = {n: v for n, v in blank.items() if n != "past_observed_mask"}  # NaN says it by itself
    for other in (blank, wild, alone):
        assert torch.equal(model(**other).logits, before.logits)
    if "future_values" in inputs:
        later = inputs["future_values"].clone()
        later[:, 3:] = math.nan
        changed = model(**{**inputs, "future_values": later})
        assert torch.equal(changed.logits[:, :4], before.logits[:, :4])  # step t has the values up to t - 1
        assert not torch.equal(changed.logits[:, 4], before.logits[:, 4])
        assert torch.equal(changed.beside["scale"], before.beside["scale"])
        assert bool(changed.logits.isfinite().all())


def test_a_missing_value_stops_no_gradient(model):
    inputs = example(model)
    inputs["past_values"][:, -2] = math.nan
    model.zero_grad()
    model(**inputs).logits.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_first_steps_alone_are_the_first_of_all(model):
    inputs = example(model)
    first = {n: v[:, :2] if n.startswith("future") else v for n, v in inputs.items()}
    if model.stepwise:
        torch.testing.assert_close(model(**first).logits, model(**inputs).logits[:, :2])
        with pytest.raises(ValueError, match="reads future_values"):
            model(**{n: v for n, v in inputs.items() if n != "future_values"})
    else:
        assert model(**first).logits.shape[1] == 2 and "future_values" not in model.inputs()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"past_values": lambda v: v[:, 1:]},
            "14 steps, and the model needs 15: a context of 12 and a largest lag of 3",
        ),
        ({"past_values": lambda v: v[..., None]}, r"past_values must be \(batch, 15\)|past_values must be"),
        ({"future_time_features": lambda v: v[:, :0]}, "0 steps ahead|must be"),
        ({"future_time_features": lambda v: torch.cat((v, v), 1)}, "10 steps ahead|must be"),
        ({"past_time_features": lambda v: v[..., :1]}, "past_time_features must be"),
    ],
)
def test_inputs_of_another_form_are_refused_by_name(model, change, said):
    inputs = example(model)
    with pytest.raises(ValueError, match=said):
        model(**{n: change[n](v) if n in change else v for n, v in inputs.items() if n != "past_observed_mask"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lags": (0, 1)}, "a lag of 0 a row holds the value that it predicts"),
        ({"lags": ()}, "lags"),
        ({"start": 5}, "start=5 steps of the context, which has 4"),
        ({"categories": (3,)}, "a size and a width"),
        ({"scaling": "max"}, "scaling must be one of"),
        ({"horizon": 0}, "horizon=0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Series.of(**{"context": 4, "horizon": 2, **options}).build(8)


def test_a_category_that_does_not_exist_is_named():
    model = af.build("informer", "tiny", categories=(5, 3), widths=(2, 2))
    inputs = example(model)
    inputs["static_categorical_features"][1, 1] = 3
    with pytest.raises(
        ValueError, match=r"static_categorical_features\[:, 1\] holds 3: its category has the numbers 0"
    ):
        model(**inputs)


@pytest.mark.parametrize("name", list(LAWS))
def test_a_law_has_the_density_of_its_draws(name):
    law, count = LAWS[name], 40_000
    raw = [torch.tensor([[0.4]]), torch.tensor([[0.7]]), torch.tensor([[0.2]])][: len(law.names)]
    shift, scale = torch.tensor([[3.0 if name != "negative_binomial" else 0.0]]), torch.tensor([[2.5]])
    given = law.mapped(raw, scale)
    many = [p.expand(1, count) for p in given]
    drawn = law.sample(many, shift, scale, [NOISE().manual_seed(3)])[0]
    edges = torch.linspace(-2.0, 14.0, 9) if name != "negative_binomial" else torch.arange(0.0, 12.0)
    if name == "negative_binomial":
        share = torch.stack([(drawn == k).double().mean() for k in edges])
        exact = law.log_prob(edges[None], given, shift, scale)[0].exp().double()
    else:
        fine = torch.linspace(0, 1, 201)
        points = edges[:-1, None] + fine * (edges[1:] - edges[:-1])[:, None]
        density = law.log_prob(points, given, shift, scale).exp().double()
        exact = torch.trapezoid(density, points.double())
        share = torch.stack([((drawn >= a) & (drawn < b)).double().mean() for a, b in itertools.pairwise(edges)])
    error = (exact * (1 - exact) / count).sqrt().clamp(min=1e-4)
    assert bool(((share - exact).abs() < 6 * error).all()), (share, exact)


def test_what_a_row_draws_does_not_depend_on_the_others():
    law = LAWS["student_t"]
    given = law.mapped([torch.randn(3, 5, generator=NOISE().manual_seed(i)) for i in range(3)], torch.ones(3, 1))
    shift, scale = torch.zeros(3, 1), torch.ones(3, 1)
    noise = lambda *seeds: [NOISE().manual_seed(s) for s in seeds]  # noqa: E731
    together = law.sample(given, shift, scale, noise(5, 6, 7))
    alone = law.sample([p[1:2] for p in given], shift[:1], scale[:1], noise(6))
    assert torch.equal(together[1:2], alone)


def test_the_loss_is_a_mean_over_steps_that_are_there():
    model = af.build("informer", "tiny", seed=0, targets=2).eval()
    inputs = example(model, 3)
    objective, labels = Likelihood.of(model), inputs["future_values"].clone()
    labels[0, 1, 0] = math.nan  # one of two targets: the step does not count
    labels[2] = math.nan
    assert int(objective.counted(labels)) == 9
    out = model(**inputs)
    whole = objective(out, labels, objective.counted(labels))
    pieces = [
        objective(model(**{n: v[i : i + 1] for n, v in inputs.items()}), labels[i : i + 1], objective.counted(labels))
        for i in range(3)
    ]
    torch.testing.assert_close(sum(pieces), whole)
    with pytest.raises(ValueError, match=r"floats \(windows, steps, 2\)"):
        objective.check(labels[..., 0])


def test_distilling_halves_the_steps_as_its_flow_says_and_refuses_padding():
    part = Distil.of().build(6).eval()
    for steps in (1, 2, 5, 8):
        flow = Flow(torch.arange(steps))
        assert part(torch.randn(2, steps, 6), flow).shape[1] == len(part.behind(flow).positions) == (steps + 1) // 2
    with pytest.raises(ValueError, match="padding"):
        part(torch.randn(2, 4, 6), Flow(torch.arange(4), keep=torch.ones(2, 4, dtype=torch.bool)))


def test_the_trend_of_a_line_is_the_line_inside():
    line = torch.arange(9.0)[None, :, None]
    torch.testing.assert_close(trend(line, 5)[:, 2:-2], line[:, 2:-2])
    with pytest.raises(ValueError, match="average=4"):
        af.build("autoformer", "tiny", average=4)
    with pytest.raises(ValueError, match="start"):
        broken = af.recipe("autoformer", "tiny").but({"embed.start": None}).build()
        broken(**example(broken))


def test_delays_across_need_a_memory_without_padding():
    part = AutoCorrelation.of(cross=True).build(8)
    with pytest.raises(ValueError, match="encoder's output"):
        part(torch.randn(1, 4, 8), Flow(torch.arange(4)))


def test_a_new_model_of_one_pass_is_saved_in_our_own_format_and_read_again(tmp_path):
    model = af.build("informer", "tiny", seed=0, start=4)
    with pytest.warns(UserWarning, match="start=4"):
        model.save(tmp_path)
    again = af.load(tmp_path)
    assert again.embed.start == 4 and not again.stepwise
    steps = af.build("informer", "tiny", seed=0)
    assert steps.state_dict().keys() == model.state_dict().keys()  # the network is the same


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"feature_size": 99}, "feature_size"),
        ({"scaling": "max"}, "scaling"),
        ({"lags_sequence": [0, 1]}, "lag of 0"),
        ({"loss": "mse"}, "loss"),
        ({"cardinality": [3, 4]}, "feature_size|cardinality"),
        ({"decoder_ffn_dim": 7}, "decoder_ffn_dim"),
        ({"distribution_output": "poisson"}, "distribution_output"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused_by_its_key(change, said, tmp_path):
    import json

    af.build("autoformer", "tiny").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if "cardinality" in change:
        config["num_static_categorical_features"] = 1
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=said):
        af.load(tmp_path)
