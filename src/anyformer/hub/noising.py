"""Noising: how pictures become noise, from scheduler_config.json, which is read and written strictly.

At time t a picture is x_t = a x + b n, with n from N(0, 1). A model that reads x_t and t says n, x, or a velocity.

    FlowMatching(shift=3.0)                 a = 1 - s, b = s;                     FlowMatchEulerDiscreteScheduler
    DDPM(predicts="velocity")               a^2 = (1 - beta_0) … (1 - beta_t);    DDPMScheduler, DDIMScheduler

B rows, C channels.
"""

from __future__ import annotations

import functools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from anyformer.core.part import check_option
from anyformer.core.value import nearest
from anyformer.hub.formats.guard import atomic_write, inside, read_json
from anyformer.hub.processors.base import Origin
from anyformer.hub.tables.config import Lens, Line, key, must, quiet, read, write

FILE = "scheduler_config.json"
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = {"epsilon": "noise", "sample": "sample", "v_prediction": "velocity"}
VARIANCES = {"fixed_small": "small", "fixed_large": "large"}
LINEAR, SQUARED, COSINE, SIGMOID = "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"
MOST = 100_000  # steps of training


@dataclass(frozen=True)
class Noising(ABC):
    """Base of the ways to noise: times from `steps` (noise) down to 0 (almost the picture).

    Attributes:
        steps: times of training. origin: the file that it was read from.
        samplers: the ways to sample, see `generate.diffusion`; the default one first.
    """

    samplers: ClassVar[tuple[str, ...]] = ("ddim", "ddpm")

    steps: int = 1000
    origin: Origin = field(default=Origin(FILE), compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST:
            raise ValueError(f"{type(self).__name__}: steps must be from 1 to {MOST:,}, got {self.steps}")

    def __str__(self) -> str:
        """The options that differ from their defaults: `DDPM(predicts='velocity', clip=1.0)`."""
        other = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self)
                 if f.name != "origin" and getattr(self, f.name) != f.default]  # fmt: skip
        return f"{type(self).__name__}({', '.join(other)})"

    @abstractmethod
    def scales(self, time: float | None) -> tuple[float, float]:
        """a and b at a time; None: behind the last one."""

    @abstractmethod
    def times(self, count: int) -> list[float]:
        """`count` times to sample at, the noisiest first."""

    @abstractmethod
    def drawn(self, share: Tensor) -> Tensor:
        """Times of training, from numbers between 0 and 1 that are drawn evenly. (B,) -> (B,) float32."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The answer that is asked of the model. (B, C, height, width) twice, (B,) -> (B, C, height, width)."""

    @abstractmethod
    def parts(self, x: Tensor, said: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """The picture and the noise in x_t, by what the model said of it."""

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t for each row's time. (B, C, height, width) twice, (B,) -> (B, C, height, width)."""
        a, b = self._columns(times, clean)
        return a * clean + b * noise

    def _columns(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of each row, (B, 1, 1, 1)."""
        both = torch.tensor([self.scales(t) for t in times.tolist()], dtype=torch.float64).to(like)  # (B, 2)
        return both[:, :1, None, None], both[:, 1:, None, None]

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self.steps:
            raise ValueError(f"steps must be from 1 to {self.steps}, the times of training; got {count}")


@dataclass(frozen=True)
class FlowMatching(Noising):
    """Straight lines from pictures to noise: x_s = (1 - s) x + s n, s = t / steps; the model says the velocity n - x
    (Lipman et al., 2022; arXiv:2210.02747; Liu et al., 2022; arXiv:2209.03003).

    Args:
        shift: m of s' = m s / (1 + (m - 1) s): more of the times go to more noise, for larger pictures (Esser et al.,
            2024; arXiv:2403.03206, section 5.3.2).
        twice: the times as diffusers lists them, whose last one is shifted twice (its issue 13243); else once.
    """

    samplers = ("euler", "ddim", "ddpm")

    shift: float = 1.0
    twice: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shift < 1e6:
            raise ValueError(f"FlowMatching: shift must be above 0, got {self.shift}")

    def shifted(self, share: Any) -> Any:
        """m s / (1 + (m - 1) s), of a number or a tensor."""
        return self.shift * share / (1 + (self.shift - 1) * share)

    def scales(self, time: float | None) -> tuple[float, float]:
        share = 0.0 if time is None else time / self.steps
        return 1 - share, share

    def times(self, count: int) -> list[float]:
        self._check_count(count)
        last = 1 / self.steps
        last = self.shifted(last) if self.twice else last
        even = [1 + (last - 1) * i / max(1, count - 1) for i in range(count)]
        return [self.steps * self.shifted(share) for share in even]

    def drawn(self, share: Tensor) -> Tensor:
        return (self.steps * self.shifted(share.double())).float()

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise - clean

    def parts(self, x: Tensor, said: Tensor, time: float) -> tuple[Tensor, Tensor]:
        a, b = self.scales(time)
        return x - b * said, x + a * said


@dataclass(frozen=True)
class DDPM(Noising):
    """Noise added in `steps` small steps: x_t = sqrt(A_t) x + sqrt(1 - A_t) n, A_t = (1 - beta_0) … (1 - beta_t) (Ho et
    al., 2020; arXiv:2006.11239).

    Args:
        start, end: the first and the last beta. schedule: between them: linear; scaled_linear: their roots are;
            sigmoid; squaredcos_cap_v2: A follows a squared cosine, without start and end (Nichol and Dhariwal, 2021;
            arXiv:2102.09672).
        betas: all of them, in place of these.
        predicts: noise: n; sample: x; velocity: sqrt(A) n - sqrt(1 - A) x (Salimans and Ho, 2022; arXiv:2202.00512).
        spacing: of the times to sample at: trailing begins with the noisiest; leading does not, and ends at `offset`;
            linspace has both ends (Lin et al., 2023; arXiv:2305.08891, table 2).
        clip: the largest value of the picture in each step; None: any.
        ends_clean: a = 1 behind the last time; else that of time 0 (DDIM alone).
        variance: of the noise that "ddpm" adds: small: of the posterior; large: beta.
        sampler: of the file: ddpm or ddim.
    """

    start: float = 1e-4
    end: float = 0.02
    schedule: str = LINEAR
    betas: tuple[float, ...] | None = None
    predicts: str = "noise"
    spacing: str = "trailing"
    offset: int = 0
    clip: float | None = None
    ends_clean: bool = True
    variance: str = "small"
    sampler: str = "ddim"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("DDPM", "schedule", self.schedule, (LINEAR, SQUARED, COSINE, SIGMOID))
        check_option("DDPM", "predicts", self.predicts, tuple(PREDICTIONS.values()))
        check_option("DDPM", "spacing", self.spacing, SPACINGS)
        check_option("DDPM", "variance", self.variance, tuple(VARIANCES.values()))
        check_option("DDPM", "sampler", self.sampler, ("ddim", "ddpm"))
        if self.betas is not None and len(self.betas) != self.steps:
            raise ValueError(f"DDPM: betas has {len(self.betas)} numbers, and steps is {self.steps}")
        if not all(0 < beta < 1 for beta in every_beta(self)):
            raise ValueError(f"DDPM: every beta is between 0 and 1; got start={self.start}, end={self.end}")
        if not 0 <= self.offset < self.steps:
            raise ValueError(f"DDPM: offset must be from 0 to {self.steps - 1}, got {self.offset}")

    def scales(self, time: float | None) -> tuple[float, float]:
        if time is None and self.ends_clean:
            return 1.0, 0.0
        if time is not None and (time != int(time) or not 0 <= time < self.steps):
            raise ValueError(f"DDPM has the times 0 to {self.steps - 1}; got {time}")
        share = remaining(self)[0 if time is None else int(time)]
        return math.sqrt(share), math.sqrt(1 - share)

    def times(self, count: int) -> list[float]:
        self._check_count(count)
        if self.spacing == "linspace":
            width = (self.steps - 1) / max(1, count - 1)
            return [float(round(width * i)) for i in (reversed(range(count)) if count > 1 else range(1))]
        if self.spacing == "leading":
            stride = self.steps // count
            return [float(i * stride + self.offset) for i in reversed(range(count))]
        return [float(round(self.steps - i * self.steps / count) - 1) for i in range(count)]

    def drawn(self, share: Tensor) -> Tensor:
        return (share.double() * self.steps).floor().clamp(max=self.steps - 1).float()

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        if self.predicts == "velocity":
            a, b = self._columns(times, clean)
            return a * noise - b * clean
        return noise if self.predicts == "noise" else clean

    def parts(self, x: Tensor, said: Tensor, time: float) -> tuple[Tensor, Tensor]:
        a, b = self.scales(time)
        if self.predicts == "velocity":
            clean, noise = a * x - b * said, a * said + b * x
        elif self.predicts == "noise":
            clean, noise = (x - b * said) / a, said
        else:
            clean, noise = said, (x - a * said) / b
        return (clean if self.clip is None else clean.clamp(-self.clip, self.clip)), noise


@functools.cache
def every_beta(noising: DDPM) -> tuple[float, ...]:
    """The betas of all times."""
    steps, start, end = noising.steps, noising.start, noising.end
    if noising.betas is not None:
        return noising.betas
    if noising.schedule == COSINE:

        def left(share: float) -> float:
            return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

        return tuple(min(1 - left((i + 1) / steps) / left(i / steps), 0.999) for i in range(steps))
    even = torch.linspace(0, 1, steps, dtype=torch.float64)
    if noising.schedule == SIGMOID:
        between = torch.sigmoid(-6 + 12 * even) * (end - start) + start
    elif noising.schedule == SQUARED:
        between = (start**0.5 + (end**0.5 - start**0.5) * even) ** 2
    else:
        between = start + (end - start) * even
    return tuple(between.tolist())


@functools.cache
def remaining(noising: DDPM) -> tuple[float, ...]:
    """A_t of all times: the share of the picture in the variance of x_t."""
    betas = torch.tensor(every_beta(noising), dtype=torch.float64)
    return tuple((1 - betas).cumprod(0).tolist())


# ------------------------------------------------------------------------------------------------ files


def _clip(content: Mapping[str, Any]) -> dict[str, Any]:
    clips = content.get("clip_sample", True)
    if not isinstance(clips, bool):
        raise ValueError(f"'clip_sample' is {clips!r}; expected true or false")
    return {"clip": float(content.get("clip_sample_range", 1.0)) if clips else None}


def _put_clip(noising: DDPM) -> dict[str, Any]:
    return {"clip_sample": False} if noising.clip is None else {"clip_sample": True, "clip_sample_range": noising.clip}


STEPS = key("num_train_timesteps", "steps", default=1000)
DYNAMIC = "for a shift that depends on the picture's size, which is off"
FLOW = (
    STEPS,
    key("shift", "shift", default=1.0),
    must("use_dynamic_shifting", False),
    must("invert_sigmas", False),
    must("shift_terminal", None),
    must("use_karras_sigmas", False),
    must("use_exponential_sigmas", False),
    must("use_beta_sigmas", False),
    must("stochastic_sampling", False),
    quiet("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type", why=DYNAMIC),
)
BETAS = (
    STEPS,
    key("beta_start", "start", default=1e-4),
    key("beta_end", "end", default=0.02),
    key("beta_schedule", "schedule", default=LINEAR),
    key("trained_betas", "betas", default=None),
    key("prediction_type", "predicts", PREDICTIONS, default="noise"),
    key("timestep_spacing", "spacing", default="leading"),
    key("steps_offset", "offset", default=0),
    Lens(("clip_sample", "clip_sample_range"), ("clip",), _clip, _put_clip),
    must("thresholding", False),
    must("rescale_betas_zero_snr", False),
    quiet("dynamic_thresholding_ratio", "sample_max_value", why="for thresholding, which is off"),
    quiet("skip_prk_steps", why="for another scheduler, from whose files this one was made"),
)
ENDS = key("set_alpha_to_one", "ends_clean", default=True)
KINDS: dict[
    str, tuple[type[Noising], tuple[Lens, ...], dict[str, Any]]
] = {  # class -> ours, its table, what it implies
    "FlowMatchEulerDiscreteScheduler": (FlowMatching, FLOW, {"twice": False}),
    "DDIMScheduler": (DDPM, (*BETAS, ENDS), {"sampler": "ddim", "variance": "small"}),
    "DDPMScheduler": (
        DDPM,
        (
            *BETAS,
            key("variance_type", "variance", VARIANCES, default="small"),
            quiet("set_alpha_to_one", why="for DDIM; this sampler ends at the picture"),
        ),
        {"sampler": "ddpm", "ends_clean": True},
    ),
}


def read_noising(folder: Path, ignore: Collection[str] = ()) -> Noising | None:
    """The noising that a folder's scheduler_config.json describes; None without that file.

    Raises:
        ValueError: naming file and key, for an unknown class, an unknown key, or a value that is not supported.
    """
    if not (folder / FILE).exists():
        return None
    content = read_json(inside(folder, FILE))
    try:
        return from_words(content, ignore)
    except ValueError as error:
        raise ValueError(f"{folder / FILE}: {error}") from None


def from_words(content: Any, ignore: Collection[str] = ()) -> Noising:
    """The noising of a file's content."""
    if not isinstance(content, dict):
        raise ValueError(f"expected a dictionary, got {type(content).__name__}")
    name = str(content.get("_class_name"))
    if name not in KINDS:
        raise ValueError(f"no scheduler {name!r}{nearest(name, list(KINDS))}; anyformer reads {', '.join(KINDS)}")
    kind, entries, implied = KINDS[name]
    made, lines = read(entries, content, kind, {**implied, "origin": Origin(FILE)}, ignore)
    return replace(made, origin=Origin(FILE, words=content, lines=tuple(lines)))


def words(noising: Noising) -> dict[str, Any]:
    """The content of a file; keys of the file that was read stay if they mean the same."""
    before = noising.origin.words
    for name, (kind, entries, implied) in KINDS.items():
        if type(noising) is kind and all(getattr(noising, k) == v for k, v in implied.items()):
            fixed = {**implied, "origin": noising.origin}
            version = {"_diffusers_version": before["_diffusers_version"]} if "_diffusers_version" in before else {}
            return {"_class_name": name, **version, **write(entries, noising, fixed, before)}
    raise ValueError(f"no scheduler_config.json can express {noising}")


def write_noising(folder: Path, noising: Noising | None) -> None:
    """Writes the file for `read_noising`."""
    if noising is not None:
        atomic_write(folder / FILE, (json.dumps(words(noising), indent=2, sort_keys=True) + "\n").encode())


def lines_of(noising: Noising) -> list[Line]:
    """The lines of the ledger for the keys of its file."""
    return list(noising.origin.lines)
