"""A plan in words: the layouts of `plan`, every formula with its numbers, and which assumption matters most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from anyformer.scale.gpus import GPU
from anyformer.scale.laws import PUBLISHED
from anyformer.scale.plan import MORE, WHY, Assumptions, Layout, best, defaults, energy, fits, layouts
from anyformer.scale.quantities import positive, short
from anyformer.scale.shape import Shape
from anyformer.train.memory import GB

RATIO = 20  # tokens of a parameter, the rule of thumb from Chinchilla's 70 billion parameters and 1.4 trillion tokens
SHARES = ("utilisation", "overlap", "reserve")


@dataclass(frozen=True)
class Swing:
    """Days and kg CO2 with an assumption at its least and its most; None where nothing fits."""

    name: str
    least: float
    most: float
    days: tuple[float | None, float | None]
    carbon: tuple[float | None, float | None]


@dataclass(frozen=True)
class Plan:
    """The result of `plan`; the first of `layouts` is the quickest."""

    model: str
    shape: Shape
    parameters: float
    tokens: float
    gpus: int
    gpu: GPU
    assumed: Assumptions
    layouts: tuple[Layout, ...]
    swings: tuple[Swing, ...]
    price: float | None

    @property
    def days(self) -> float:
        """Of the quickest layout."""
        return self.layouts[0].days(self.shape, self.tokens)

    @property
    def six(self) -> float:
        """6 N D, of the parameters that a token meets."""
        return 6 * self.parameters * self.shape.active / self.shape.parameters * self.tokens

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, for machines."""
        used = energy(self.gpus, self.assumed.watts, self.days, self.assumed.pue, self.assumed.carbon)
        rows = [
            {**asdict(e), "days": e.days(self.shape, self.tokens), "step": e.step, "exposed": e.exposed}
            for e in self.layouts
        ]
        return {
            "model": self.model, "shape": asdict(self.shape), "tokens": self.tokens, "flops": self.six,
            "gpus": self.gpus, "gpu": asdict(self.gpu), "assumptions": asdict(self.assumed), "layouts": rows,
            "days": self.days, "kwh": used.kwh, "kg_co2": used.carbon, "price": self._cost(),
            "sensitivity": [asdict(s) for s in self.swings],
        }  # fmt: skip

    def _cost(self) -> float | None:
        return None if self.price is None else self.price * self.gpus * self.days * 24

    def __str__(self) -> str:
        return "\n\n".join(["\n".join(part) for part in (self._head(), self._rows(), self._why(), self._matters())])

    def _head(self) -> list[str]:
        law = PUBLISHED["besiroglu"]
        counted = self.shape.flops[0] * self.tokens
        return [
            f"{self.model}: {short(self.shape.parameters)} parameters, rows of {self.shape.context:,} tokens",
            f"operations   6 N D = 6 x {self.parameters:.4g} x {self.tokens:.4g} = {self.six:.3g}"
            + (" (active N)" if self.shape.active != self.shape.parameters else "")
            + f"; counted {counted:.3g}, {counted / self.six:.2f} of that",
            f"data         {short(self.tokens)} tokens; {RATIO} a parameter would be {short(RATIO * self.parameters)}, "
            f"the law of Besiroglu et al. says {short(law.tokens_for(self.parameters))}",
        ]

    def _rows(self) -> list[str]:
        head = "GB of the fullest GPU: weights, gradients, optimiser, activations"
        lines = [f"layouts that fit {self.gpus}x{self.gpu.name}, the quickest first; {head}"]
        for e in self.layouts:
            m, step = e.memory, e.step
            parts = ", ".join(f"{n / GB:.1f}" for n in (m.weights, m.gradients, m.optimizer, m.activations))
            lines.append(f"  {e}: {e.days(self.shape, self.tokens):.3g} days")
            share = self.six / (e.days(self.shape, self.tokens) * 86400 * self.gpus * self.gpu.flops)
            lines.append(
                f"      {m.peak / GB:.1f} GB ({parts}); {e.micro} micro-batches of {e.rows}; step {step:.3g} s, "
                f"{e.seconds['bubble'] / step:.1%} of it pipeline bubble, {e.exposed / step:.1%} exposed communication "
                f"({self._worst(e)}); {share:.0%} of the peak in all"
            )
        return lines

    @staticmethod
    def _worst(e: Layout) -> str:
        causes = {n: s for n, s in e.seconds.items() if n not in ("compute", "bubble") and s > 0}
        return "mostly " + max(causes, key=lambda n: causes[n]) if causes else "none"

    def _why(self) -> list[str]:
        e, a, s = self.layouts[0], self.assumed, self.shape
        used = energy(self.gpus, a.watts, self.days, a.pue, a.carbon)
        tokens = e.micro * e.rows * e.data * s.context
        exposed = ", ".join(f"{n} {t:.3g} s" for n, t in e.seconds.items() if n not in ("compute", "bubble"))
        lines = [
            "of the first one",
            f"  weights      {s.weights:.3g}, gradients {s.gradients:.3g}, master copy and moments {s.optimizer:.3g} "
            "bytes of a parameter, in bf16",
            "  activations  counted for a row: "
            f"{s.kept[0] / GB:.3g} GB, recomputed {s.kept[1] / GB:.3g} GB; x rows x min(m, p) / p / (tensor x context)",
            f"  compute      operations / (GPUs x {self.gpu.flops:.3g} x {a.utilisation:.2g}) = "
            f"{e.seconds['compute']:.3g} s a step of {short(tokens)} tokens",
            f"  bubble       compute x (p - 1) / m = {e.seconds['bubble']:.3g} s",
            f"  exposed      {exposed}",
            f"  days         {self.tokens:.4g} / {tokens:.4g} x {e.step:.3g} s / 86,400 = {self.days:.3g}",
            f"  energy       {self.gpus} x {a.watts:.4g} W x {self.days:.3g} days x 24 x PUE {a.pue:g} / 1000 = "
            f"{used.kwh:,.0f} kWh (estimate)",
            f"  CO2          {used.kwh:,.0f} kWh x {a.carbon:g} kg = {used.carbon:,.0f} kg",
        ]
        cost = self._cost()
        return lines + ([] if cost is None else [f"  price        GPUs x hours x {self.price:g} = {cost:,.0f}"])

    def _matters(self) -> list[str]:
        lines = ["assumptions, the one that matters most for the days first, and what they change"]
        for s in self.swings:
            value, why = getattr(self.assumed, s.name), WHY[s.name][3]
            ends = [" to ".join("no fit" if v is None else f"{v:,.3g}" for v in pair) for pair in (s.days, s.carbon)]
            lines.append(
                f"  {s.name:12}{value:.4g} ({s.least:.4g} to {s.most:.4g}): {ends[0]} days, {ends[1]} kg CO2; {why}"
            )
        most = max(self.swings, key=lambda s: _ratio(s.carbon))
        return [*lines, f"for the days {self.swings[0].name} matters most, for the CO2 {most.name}"]


def _ratio(pair: tuple[float | None, float | None]) -> float:
    low, high = pair
    return float("inf") if low is None or high is None else max(low, high) / min(low, high) if low and high else 1.0


def assumptions(gpu: GPU, tokens: float, given: Mapping[str, Any]) -> Assumptions:
    """Defaults, and what somebody set; `batch` may be a text such as 4m.

    Raises:
        ValueError: for a share outside 0 to 1, or a number that is not above 0.
    """
    made = defaults(gpu, tokens)
    for name in made:
        if (value := given.get(name)) is None:
            continue
        if name in SHARES and not 0 <= value <= 1 - (name == "reserve") * 1e-9:
            raise ValueError(f"--{name} is a share from 0 to 1, got {value}")
        free = name in ("overlap", "reserve", "carbon") and value == 0
        made[name] = 0.0 if free else positive(f"--{name}", value)
    return Assumptions(**made)


def plan(
    model: str, shape: Shape, parameters: float, tokens: float, gpus: int, gpu: GPU, assumed: Assumptions,
    longest: float | None = None, price: float | None = None,
) -> Plan:  # fmt: skip
    """The plan of a run.

    Args:
        model: its name, to be shown. parameters: N of 6 N D, where the shape is near to it alone. longest: days.
        price: of an hour of a GPU.

    Raises:
        ValueError: if no layout fits, or none within `longest`, with what would.
    """
    found = best(shape, gpus, gpu, assumed)
    days = found[0].days(shape, tokens)
    if longest is not None and days > longest:
        raise ValueError(_too_long(shape, tokens, gpus, gpu, assumed, days, longest))

    def at(name: str, value: float) -> tuple[float | None, float | None]:
        other = replace(assumed, **{name: value})
        able = [e.days(shape, tokens) for e in layouts(shape, gpus, gpu, other) if fits(e, gpu, other)]
        if not able:
            return None, None
        return min(able), energy(gpus, other.watts, min(able), other.pue, other.carbon).carbon

    swings = []
    for name, (low, high, factors, _) in WHY.items():
        by = getattr(assumed, name) if factors else 1.0
        (d1, c1), (d2, c2) = (at(name, value * by) for value in (low, high))
        swings.append(Swing(name, low * by, high * by, (d1, d2), (c1, c2)))
    swings.sort(key=lambda s: -_ratio(s.days))
    return Plan(model, shape, parameters, tokens, gpus, gpu, assumed, tuple(found), tuple(swings), price)


def _too_long(
    shape: Shape, tokens: float, gpus: int, gpu: GPU, assumed: Assumptions, days: float, longest: float
) -> str:
    """The message for a budget that cannot be met."""
    enough = "no number of GPUs that was tried is enough"
    for number in (n * gpus for n in MORE):
        able = [e.days(shape, tokens) for e in layouts(shape, number, gpu, assumed) if fits(e, gpu, assumed)]
        if able and min(able) <= longest:
            enough = f"{number}x{gpu.name} take {min(able):.3g} days"
            break
    return (
        f"budget: the quickest layout on {gpus}x{gpu.name} takes {days:.3g} days, and {longest:g} are allowed; "
        f"in these it reads {short(tokens * longest / days)} tokens, and {enough}"
    )
