"""Training on series and forecasts of them: one tiny run, its draws, its scores, and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.generate.forecasting import backtest, crps, forecast
from anyformer.media.series import read_series
from anyformer.train import finetune, train

STEPS = 120
SMALL = {"horizon": 4, "context": 8, "lags": (1, 2, 6), "scaler": "std"}


def table(path: Path, count: int = STEPS, seed: int = 0, missing: int = 13, names: tuple[str, ...] = ("",)) -> Path:
    noise = np.random.default_rng(seed)
    lines = ["time,target,load,series"]
    for i, name in enumerate(names):
        for step in range(count):
            value = 20 + 5 * i + 4 * math.sin(step * math.pi / 3) + 0.1 * noise.standard_normal()
            cell = "" if step % 17 == missing else f"{value:.4f}"
            lines.append(f"{np.datetime64('2024-01-01') + step},{cell},{step % 6},{name}")
    path.write_text("\n".join(lines) + "\n")
    return path


def learned(tmp_path: Path, data: Path, model: str = "informer", steps: int = 3, **options):
    overrides = {**SMALL, **({"start": 3} if model == "autoformer" else {}), **options.pop("overrides", {})}
    return train(
        model, "tiny", data=data, steps=steps, batch=8, overrides=overrides, quiet=True, memory=100.0,
        **{"out": tmp_path / "run", **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("series")


@pytest.fixture(scope="module")
def data(folder):
    return table(folder / "a.csv")


@pytest.fixture(scope="module", params=["informer", "at once", "autoformer"])
def model(request, folder, data):
    name = request.param.replace("at once", "informer")
    more = {"start": 2} if request.param == "at once" else {}
    return learned(folder, data, name, steps=60, lr=1e-2, out=folder / request.param, overrides=more).model


def test_it_learns_and_beats_a_constant_law(model, data):
    scores = backtest(model, data, samples=40)
    assert scores.windows == STEPS // 10 - 4 + 1 and 0 < scores.values < 4 * scores.windows  # some are missing
    constant = 0.564 * 4 / math.sqrt(2)  # CRPS of a normal law is 0.564 of its deviation
    assert scores.crps < constant and 0.3 < scores.coverage <= 1 and scores.mase < 1


def test_a_forecast_has_its_times_and_ordered_quantiles(model, data):
    (one,) = forecast(model, data, horizon=3, samples=30)
    assert one.samples.shape == (30, 3, 1)
    last = np.datetime64("2024-01-01") + STEPS
    assert [str(t)[:10] for t in one.times] == [str(last + i) for i in range(3)]
    low, middle, high = (one.quantile(q) for q in (0.1, 0.5, 0.9))
    assert bool((low <= middle).all() and (middle <= high).all())


def test_draws_do_not_depend_on_what_is_beside_them_and_scores_not_on_the_batch(model, data, monkeypatch):
    from anyformer.generate import forecasting

    (series,) = read_series(data)
    early = series.cut(100)
    alone, together = forecast(model, [series], samples=5), forecast(model, [series, early], samples=5)
    np.testing.assert_allclose(alone[0].samples, together[0].samples, rtol=1e-5)
    assert not np.allclose(forecast(model, [series], samples=5, seed=1)[0].samples, alone[0].samples)
    whole = backtest(model, data, samples=5)
    monkeypatch.setattr(forecasting, "ROWS", 5)  # one window at a time
    each = backtest(model, data, samples=5)
    assert (whole.windows, whole.values) == (each.windows, each.values)
    assert (whole.mase, whole.crps, whole.coverage) == pytest.approx((each.mase, each.crps, each.coverage), rel=1e-4)


def test_the_future_and_what_is_missing_change_no_forecast(model, data):
    (series,) = read_series(data)
    other = series.cut(100)
    wild = series.cut(100)
    series.values[100:] = 1e6  # behind the cut
    np.testing.assert_array_equal(forecast(model, [other], samples=3)[0].samples,
                                  forecast(model, [wild], samples=3)[0].samples)  # fmt: skip


def test_the_processor_and_the_law_come_back_from_files(model, data, folder, tmp_path):
    model.save(tmp_path / "saved", overwrite=True)
    again = af.load(tmp_path / "saved")
    assert again.processor == model.processor and again.processor.targets == ("target",)
    one, two = (forecast(m, data, samples=4)[0].samples for m in (model, again))
    np.testing.assert_allclose(one, two, rtol=1e-6)  # some processors round by a tensor's place in memory


def test_a_resumed_run_ends_with_the_same_bits(tmp_path, data):
    whole = learned(tmp_path, data, steps=6, out=tmp_path / "whole")
    learned(tmp_path, data, steps=6, out=tmp_path / "parts", save_every=4)
    goes_on = {"out": tmp_path / "more", "resume": str(tmp_path / "parts" / "step-000004")}
    parts = learned(tmp_path, data, steps=6, **goes_on)
    one, two = whole.model.state_dict(), parts.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_trained_model_goes_on_from_its_weights_on_other_data(tmp_path, data):
    done = learned(tmp_path, data)
    other = table(tmp_path / "b.csv", seed=1)
    more = train(str(done.checkpoint), data=other, steps=2, batch=8, out=tmp_path / "more", quiet=True, memory=100.0)
    assert more.task == "forecast" and math.isfinite(more.loss)
    tuned = finetune(str(done.checkpoint), data=other, steps=2, batch=8, out=tmp_path / "tuned", quiet=True)
    assert tuned.task == "forecast" and tuned.learned < tuned.parameters
    assert tuned.after is not None and math.isfinite(tuned.after)
    weekly = tmp_path / "c.csv"
    weekly.write_text("time,target\n" + "".join(f"{np.datetime64('2020-01-06') + 7 * i},{i}\n" for i in range(99)))
    with pytest.raises(ValueError, match="trained on steps of a day, and the table has steps of 7 days"):
        train(str(done.checkpoint), data=weekly, steps=1, out=tmp_path / "x", quiet=True)


def test_several_series_with_what_is_known_ahead_and_several_targets(tmp_path):
    data = table(tmp_path / "a.csv", names=("north", "south"))
    fields = {"series": "series", "known": "load"}
    done = learned(tmp_path, data, fields=fields)
    assert done.model.config.categories == (2,) and done.model.config.known == 1
    with pytest.raises(
        ValueError, match="'load' must be known for 4 steps behind the last value, and the rows go on for 0"
    ):
        forecast(done.model, data, fields=fields)
    lines = data.read_text().splitlines()
    ahead = [f"{np.datetime64('2024-01-01') + STEPS + i},,{i},{n}" for n in ("north", "south") for i in range(4)]
    whole = tmp_path / "b.csv"
    whole.write_text("\n".join([*lines, *ahead]) + "\n")
    assert [f.series.name for f in forecast(done.model, whole, samples=2, fields=fields)] == ["north", "south"]
    whole.write_text("\n".join([*lines, *ahead]).replace("south", "west") + "\n")
    with pytest.raises(ValueError, match="'west' was not in training; there were 'north', 'south'"):
        forecast(done.model, whole, samples=2, fields=fields)
    both = learned(tmp_path, table(tmp_path / "c.csv"), fields={"target": "target,load"}, out=tmp_path / "two")
    assert (
        forecast(both.model, tmp_path / "c.csv", samples=3, fields={"target": "target,load"})[0].samples.shape[2] == 2
    )


@pytest.mark.parametrize(
    ("count", "options", "said"),
    [
        (
            12,
            {},
            "no window to learn from: the longest series has 12 steps; a window has 14 of the past .* horizon of 4",
        ),
        (120, {"overrides": {"horizon": 200}}, "a horizon of 200"),
        (120, {"overrides": {"law": "negative_binomial"}}, "is for counts, and a value is"),
        (120, {"order": "packed"}, "order=packed"),
        (120, {"label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_series_that_cannot_be_learned_from_are_refused(count, options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        learned(tmp_path, table(tmp_path / "a.csv", count), **options)


def test_forecasts_that_cannot_be_made_are_refused(model, data):
    (series,) = read_series(data)
    with pytest.raises(ValueError, match="10 steps, and a window needs 14: a context of 8 and a largest lag of 6"):
        forecast(model, [series.cut(10)])
    with pytest.raises(ValueError, match="horizon=5 steps ahead, and the model's go from 1 to 4"):
        forecast(model, data, horizon=5)
    with pytest.raises(ValueError, match="samples=0"):
        forecast(model, data, samples=0)
    with pytest.raises(ValueError, match="share=0"):
        backtest(model, data, share=0.0)
    with pytest.raises(ValueError, match="does not forecast"):
        forecast(af.build("gpt", "tiny"), data)
    with pytest.raises(ValueError, match="no processor"):
        forecast(af.build("informer", "tiny"), data)


def test_the_verb_prints_writes_draws_and_scores(folder, data, tmp_path, capsys):
    learned(tmp_path, data)
    run = str(tmp_path / "run")
    out, plot = tmp_path / "ahead.csv", tmp_path / "ahead.png"
    assert (
        main(["forecast", run, str(data), "--horizon", "2", "--samples", "5", "--out", str(out), "--plot", str(plot)])
        == 0
    )
    lines = out.read_text().splitlines()
    assert lines[0] == "series,time,target,q0.1,q0.25,q0.5,q0.75,q0.9" and len(lines) == 3
    assert plot.read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert main(["forecast", run, str(data), "--backtest", "--samples", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["windows"] == 9
    assert main(["forecast", run, str(data), "--horizon", "9"]) == 2
    assert "from 1 to 4" in capsys.readouterr().err
    assert main(["forecast", run, str(data), "--quantile", "1.5"]) == 2


def test_the_score_of_draws_is_its_definition():
    noise = np.random.default_rng(0)
    drawn, true = noise.standard_normal((7, 3)), noise.standard_normal(3)
    pairs = np.abs(drawn[:, None] - drawn[None]).sum((0, 1)) / (7 * 6)
    np.testing.assert_allclose(crps(drawn, true), np.abs(drawn - true).mean(0) - pairs / 2)
