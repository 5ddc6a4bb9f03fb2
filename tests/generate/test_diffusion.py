"""Samplers: every step is diffusers', and distributions with a known answer are met."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer.core import pages
from anyformer.generate.diffusion import ddim, ddpm, denoise, euler, sample
from anyformer.hub.noising import COSINE, DDPM, SQUARED, FlowMatching, words

STEPS = 20


def drawn(seed: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, 4, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_each_step_of_euler_is_that_of_diffusers(shift: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    ours = FlowMatching(shift=shift, twice=True)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(words(FlowMatching(shift=shift)))
    theirs.set_timesteps(STEPS)
    times, x, said = ours.times(STEPS), drawn(0), drawn(1)
    for at, (time, after) in enumerate(zip(times, [*times[1:], None], strict=True)):
        theirs._step_index = at
        wanted = theirs.step(said, theirs.timesteps[at], x).prev_sample
        torch.testing.assert_close(euler(ours, x, said, time, after), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "ours",
    [
        DDPM(spacing="leading", offset=1, ends_clean=False, schedule=SQUARED, start=0.00085, end=0.012),
        DDPM(predicts="velocity", spacing="trailing", clip=1.0),
        DDPM(predicts="sample", schedule=COSINE, spacing="leading"),
    ],
    ids=repr,
)
def test_each_step_of_ddim_is_that_of_diffusers(ours: DDPM, eta: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler.from_config(words(ours))
    theirs.set_timesteps(STEPS)
    times, x, said = ours.times(STEPS), drawn(0), drawn(1)
    assert times == theirs.timesteps.tolist()
    for time, after in zip(times, [*times[1:], None], strict=True):
        fresh = drawn(2)
        wanted = theirs.step(said, int(time), x, eta=eta, variance_noise=fresh if eta else None).prev_sample
        actual = ddim(ours, x, said, time, after, eta, torch.Generator().manual_seed(2))
        torch.testing.assert_close(actual, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("predicts", ["noise", "velocity", "sample"])
def test_each_step_of_ddpm_is_that_of_diffusers(predicts: str, variance: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    ours = DDPM(predicts=predicts, variance=variance, sampler="ddpm", spacing="leading", clip=2.0)
    theirs = diffusers.DDPMScheduler.from_config(words(ours))
    theirs.set_timesteps(STEPS)
    times, x, said = ours.times(STEPS), drawn(0), drawn(1)
    for time, after in zip(times, [*times[1:], None], strict=True):
        wanted = theirs.step(said, int(time), x, generator=torch.Generator().manual_seed(3)).prev_sample
        actual = ddpm(ours, x, said, time, after, torch.Generator().manual_seed(3))
        torch.testing.assert_close(actual, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    "noising", [DDPM(predicts="velocity"), DDPM(spacing="leading"), FlowMatching(shift=2.0)], ids=repr
)
def test_ddpm_is_ddim_with_all_noise_in_mean_and_variance(noising: Any) -> None:
    times, rows = noising.times(STEPS), 20_000
    for time, after in list(itertools.pairwise(times))[3::8]:
        x, said = (drawn(i, 1).expand(rows, -1, -1, -1) for i in (0, 1))
        one = ddim(noising, x, said, time, after, 1.0, torch.Generator().manual_seed(0))
        other = ddpm(noising, x, said, time, after, torch.Generator().manual_seed(0))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # the same noise: mean and spread at once


def test_euler_is_ddim_without_noise_on_a_line() -> None:
    noising = FlowMatching(shift=3.0)
    times, x, said = noising.times(STEPS), drawn(0), drawn(1)
    for time, after in zip(times, [*times[1:], None], strict=True):
        torch.testing.assert_close(euler(noising, x, said, time, after), ddim(noising, x, said, time, after))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (2.0, 0.5), (-1.0, 0.1)])
def test_flow_matching_of_a_gaussian_has_a_closed_form(mean: float, std: float) -> None:
    """For x from N(m, d^2) the velocity is v(y, s) = -m + (s - (1 - s) d^2) (y - (1 - s) m) / ((1 - s)^2 d^2 + s^2),
    and its flow takes noise n at s = 1 to m + d n."""
    noising = FlowMatching()

    def velocity(y: Tensor, time: float) -> Tensor:
        s = time / noising.steps
        slope = (s - (1 - s) * std**2) / ((1 - s) ** 2 * std**2 + s**2)
        return -mean + slope * (y - (1 - s) * mean)

    noise = drawn(0).double()
    found = {steps: denoise(velocity, noising, noise, steps) for steps in (100, 400)}
    errors = {steps: float((x - (mean + std * noise)).abs().max()) for steps, x in found.items()}
    assert errors[400] < 0.03 and errors[400] < errors[100] / 2 + 1e-9  # Euler's error falls with the step


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
@pytest.mark.parametrize("noising", [DDPM(predicts="noise"), DDPM(predicts="velocity"), FlowMatching()], ids=repr)
def test_every_sampler_draws_a_gaussian(noising: Any, sampler: str, eta: float) -> None:
    """With the best prediction for x from N(m, d^2), samples have that mean and standard deviation."""
    mean, std = 1.0, 0.5

    def best(x: Tensor, time: float) -> Tensor:
        a, b = noising.scales(time)
        clean = mean + a * std**2 / (a**2 * std**2 + b**2) * (x - a * mean)
        held = (x - a * clean) / b
        if isinstance(noising, FlowMatching):
            return held - clean
        return held if noising.predicts == "noise" else a * held - b * clean

    noise = torch.Generator().manual_seed(0)
    x = denoise(best, noising, torch.randn(20_000, 1, 1, 1, generator=noise), 250, sampler, eta, noise)
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.std().item() == pytest.approx(std, abs=0.02)


def told(model: Any, rows: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    nothing = model.conditions["label"].nothing
    return {"class_labels": torch.arange(rows) % nothing}, {"class_labels": torch.full((rows,), nothing)}


@pytest.fixture
def model() -> Any:
    made = pages.build("dit", "tiny", seed=0)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.1)
    made.noising = FlowMatching()
    return made.eval()


@pytest.mark.parametrize("size", [(8, 8), (2, 12), (6, 4)])
def test_pictures_have_the_shape_that_was_asked_for(model: Any, size: tuple[int, int]) -> None:
    assert sample(model, (3, *size), *told(model), steps=2).shape == (2, 3, *size)


def test_guidance_of_one_is_the_condition_and_of_zero_none(model: Any) -> None:
    yes, no = told(model)
    noise = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    whole = {w: sample(model, (3, 8, 8), yes, no, 4, w, noise=noise()) for w in (0.0, 1.0, 3.0)}
    torch.testing.assert_close(whole[1.0], sample(model, (3, 8, 8), yes, yes, 4, 5.0, noise=noise()))
    torch.testing.assert_close(whole[0.0], sample(model, (3, 8, 8), no, yes, 4, 1.0, noise=noise()))
    assert not torch.equal(whole[3.0], whole[1.0])


def test_inputs_are_not_written(model: Any) -> None:
    yes, no = told(model)
    before = {name: value.clone() for name, value in (yes | no).items()}
    sample(model, (3, 8, 8), yes, no, steps=2, guidance=2.0)
    assert all(torch.equal((yes | no)[name], value) for name, value in before.items())


def test_a_predicted_variance_is_left_out() -> None:
    model = pages.build("dit", "tiny", overrides={"out": 6})
    model.noising = DDPM()
    assert sample(model, (3, 8, 8), *told(model), steps=2).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "heun"}, "sampler must be one of 'euler', 'ddim', 'ddpm'; got 'heun'"),
        ({"eta": 0.5}, "eta=0.5 is for the sampler ddim, and this is euler"),
        ({"eta": 2.0, "sampler": "ddim"}, "eta must be from 0 to 1"),
        ({"steps": 0}, "steps must be from 1 to 1000"),
        ({"steps": 2000}, "steps must be from 1 to 1000"),
    ],
)
def test_mistakes_are_named(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(model, (3, 8, 8), *told(model), **options)


def test_a_model_without_a_noising_is_refused(model: Any) -> None:
    model.noising = None
    with pytest.raises(ValueError, match=r"no scheduler_config\.json; set model\.noising"):
        sample(model, (3, 8, 8), *told(model))


def test_euler_is_for_lines_alone(model: Any) -> None:
    model.noising = DDPM()
    with pytest.raises(ValueError, match="DDPM: sampler must be one of 'ddim', 'ddpm'"):
        sample(model, (3, 8, 8), *told(model), sampler="euler")


def test_the_posterior_is_that_of_bayes() -> None:
    """x' given x and the picture: the product of two normal densities."""
    noising, time, after = DDPM(), 600.0, 500.0
    (a, b), (a_after, b_after) = noising.scales(time), noising.scales(after)
    ratio = a / a_after
    precision = 1 / b_after**2 + ratio**2 / (b**2 - ratio**2 * b_after**2)
    x, clean = drawn(0, 1), drawn(1, 1)
    mean = (a_after * clean / b_after**2 + ratio * x / (b**2 - ratio**2 * b_after**2)) / precision
    said = (x - a * clean) / b
    fresh = drawn(5, 1)
    actual = ddpm(noising, x, said, time, after, torch.Generator().manual_seed(5))
    torch.testing.assert_close(actual, mean + math.sqrt(1 / precision) * fresh, rtol=1e-4, atol=1e-4)
