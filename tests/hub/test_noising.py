"""Noising: what scheduler_config.json means, strictly in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer.core import pages
from anyformer.hub import load, save
from anyformer.hub.noising import COSINE, DDPM, FILE, KINDS, SIGMOID, SPACINGS, FlowMatching, Noising, from_words, words
from tests.hub.test_published import CONFIGS

EVERY = [
    FlowMatching(),
    FlowMatching(500, shift=3.0),
    DDPM(),
    DDPM(3, betas=(0.01,) * 3, predicts="sample", spacing="linspace", ends_clean=False),
    DDPM(schedule=COSINE, predicts="velocity", spacing="leading", offset=1, clip=1.0),
    DDPM(schedule=SIGMOID, variance="large", sampler="ddpm", end=0.05),
]


@pytest.mark.parametrize("noising", EVERY, ids=str)
def test_a_file_keeps_everything(noising: Noising) -> None:
    content = json.loads(json.dumps(words(noising)))
    again = from_words(content)
    assert again == noising and words(again) == content


@pytest.mark.parametrize("noising", EVERY, ids=str)
def test_diffusers_reads_our_files_as_we_do(noising: Noising, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    content = words(noising)
    theirs = getattr(diffusers, content["_class_name"]).from_config(content)
    assert all(theirs.config[k] == v for k, v in content.items() if not k.startswith("_"))
    theirs.save_pretrained(tmp_path)
    assert from_words(json.loads((tmp_path / FILE).read_text())) == noising
    every = torch.arange(noising.steps) if isinstance(noising, DDPM) else torch.arange(1, noising.steps + 1)
    ours = torch.tensor([noising.scales(float(t)) for t in every])  # (times, 2)
    if isinstance(noising, DDPM):
        torch.testing.assert_close(ours[:, 0] ** 2, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    else:
        assert isinstance(noising, FlowMatching)
        shifted = torch.tensor(
            [noising.scales(noising.steps * noising.shifted(float(t) / noising.steps))[1] for t in every]
        )
        torch.testing.assert_close(shifted.flip(0), theirs.sigmas)


@pytest.mark.parametrize("count", [1, 7, 10, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_times_are_those_of_diffusers(spacing: str, count: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    ours = DDPM(200, spacing=spacing, offset=1 if spacing == "leading" else 0)
    theirs = diffusers.DDIMScheduler.from_config(words(ours))
    theirs.set_timesteps(count)
    assert ours.times(count) == theirs.timesteps.tolist()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_is_shifted_once_and_twice_as_diffusers_lists_it_by_request(shift: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(words(FlowMatching(shift=shift)))
    theirs.set_timesteps(28)
    twice = FlowMatching(shift=shift, twice=True)
    torch.testing.assert_close(torch.tensor(twice.times(28)), theirs.timesteps)
    once = FlowMatching(shift=shift).times(28)
    assert once[0] == 1000 and once[-1] == pytest.approx(1000 * shift / (1000 + shift - 1))  # 0.003 of shift 3
    assert (shift == 1.0) == (once == pytest.approx(twice.times(28)))


def test_the_published_files_are_read_and_written_back_or_refused_by_name() -> None:
    folder = CONFIGS / "diffusers"
    if not folder.is_dir():
        pytest.skip("the folder of published config files is not here")
    known = 0
    for path in sorted(folder.glob("*scheduler_config.json")):
        content = json.loads(path.read_text())
        if content["_class_name"] in KINDS:
            assert words(from_words(content)) == content
            known += 1
        else:
            with pytest.raises(ValueError, match=content["_class_name"]):
                from_words(content)
    assert known >= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "no scheduler 'PNDMScheduler'"),
        ({"angle": 1}, "unknown config keys: angle=1"),
        ({"shift": "wide"}, "'shift'"),
        ({"shift": 0.0}, "shift must be above 0"),
        ({"num_train_timesteps": 0}, "steps must be from 1"),
        ({"use_dynamic_shifting": True}, "'use_dynamic_shifting' is True"),
        ({"use_karras_sigmas": True}, "'use_karras_sigmas' is True"),
    ],
)
def test_bad_files_are_refused_with_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / FILE).write_text(json.dumps(words(FlowMatching()) | changes))
    model = pages.build("dit", "tiny")
    save(model, tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "steep"}, "schedule must be one of"),
        ({"predicts": "epsilon"}, "predicts must be one of"),
        ({"betas": (0.1,)}, "betas has 1 numbers"),
        ({"end": 1.5}, "every beta is between 0 and 1"),
        ({"offset": 1000}, "offset must be from 0 to 999"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDPM(**options)


def test_a_model_keeps_its_noising_and_the_ledger_lists_its_keys(tmp_path: Path) -> None:
    model = pages.build("dit", "tiny")
    model.noising = FlowMatching(shift=2.0)
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.noising == model.noising
    assert {line.key: line.status for line in again.ledger.files[FILE]}["shift"] == "used"
    save(again, tmp_path / "again")
    assert (tmp_path / FILE).read_text() == (tmp_path / "again" / FILE).read_text()


@pytest.mark.parametrize("noising", EVERY, ids=str)
def test_parts_invert_noised_and_target(noising: Noising) -> None:
    noise = torch.Generator().manual_seed(0)
    clean = torch.rand(4, 1, 2, 3, generator=noise, dtype=torch.float64) * 2 - 1
    added = torch.randn(4, 1, 2, 3, generator=noise, dtype=torch.float64)
    times = noising.drawn(torch.tensor([0.02, 0.3, 0.7, 0.9999]))
    x, said = noising.noised(clean, added, times), noising.target(clean, added, times)
    for i, time in enumerate(times.tolist()):
        found, held = noising.parts(x[i], said[i], time)
        torch.testing.assert_close(found, clean[i], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(held, added[i], rtol=1e-3, atol=1e-3)


def test_sampling_begins_with_the_noisiest_time_unless_a_file_says_otherwise() -> None:
    assert DDPM().times(50)[0] == 999 and FlowMatching().times(50)[0] == 1000
    content = words(DDPM())
    del content["timestep_spacing"]  # whose default in diffusers is leading
    assert from_words(content).times(50)[0] == 980
    assert from_words(content | {"timestep_spacing": "trailing"}).times(50)[0] == 999


def test_drawn_times_are_those_of_training() -> None:
    share = torch.linspace(0, 1, 1001)
    assert DDPM(10).drawn(share).unique().tolist() == list(range(10))
    assert FlowMatching(shift=3.0).drawn(torch.tensor([0.5])).item() == pytest.approx(750)
