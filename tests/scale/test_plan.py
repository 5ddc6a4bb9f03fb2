"""Plans of large runs: memory that adds up, a simulated schedule, published runs, refusals with a way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from anyformer.core import pages
from anyformer.edge.count import count
from anyformer.scale import planning
from anyformer.scale.gpus import GPUS, parse
from anyformer.scale.plan import Assumptions, Layout, best, defaults, energy, fits, layouts
from anyformer.scale.shape import Shape, shape, usual
from anyformer.train.distributed.tensor import split
from anyformer.train.memory import estimate
from anyformer.train.objectives import causal_lm
from anyformer.train.settings import Settings
from benchmarks.scaling import plans

H100 = GPUS["h100"]


@pytest.fixture(scope="module")
def seven() -> Shape:
    return usual(7e9, 2048)[1]


def assumed(tokens: float = 140e9, **changed: float) -> Assumptions:
    return replace(Assumptions(**defaults(H100, tokens)), **changed)


@pytest.mark.parametrize("name", ["llama", "gpt", "mixtral", "t5", "mamba", "bert"])
def test_a_shape_is_that_of_the_count_and_of_the_real_split(name: str, tmp_path: Any) -> None:
    recipe = pages.recipe(name, "tiny")
    found, counted = shape(recipe, 32), count(recipe, 32, 1, True, False, torch.bfloat16)
    assert found.split + found.experts + found.blocks + found.tables + found.outside == counted.parameters
    assert found.weights * found.parameters == pytest.approx(counted.weights)
    assert (found.optimizer - 4) * found.parameters == pytest.approx(counted.optimizer)
    assert found.kept[0] == counted.activations and found.flops[1] >= found.flops[0]
    assert len(best(found, 4, H100, assumed(batch=1e4))) > 1
    if name in ("llama", "gpt", "bert"):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
        try:
            model = pages.build(recipe)
            numbers = {n: p.numel() for n, p in model.named_parameters()}
            cut, _ = split(model, dist.group.WORLD)
        finally:
            dist.destroy_process_group()
        left = found.split - sum(numbers[n] for n in cut)  # biases behind a sum are whole
        assert left == sum(n for name, n in numbers.items() if name.endswith(("o.bias", "down.bias")))


def test_a_usual_shape_counted_at_two_blocks_is_the_whole_one_counted() -> None:
    _, short = usual(3e7, 64)
    hyper = {"dim": short.width, "depth": short.depth, "heads": short.divisor, "kv_heads": short.divisor}
    whole = shape(pages.recipe("llama", "7b", **hyper, hidden=1024, context=4096), 64)
    assert replace(short, kept=whole.kept) == whole and short.kept == pytest.approx(whole.kept, rel=0.01)


def test_one_gpu_holds_what_the_count_says_and_shards_add_up(seven: Shape) -> None:
    given = assumed()
    one = next(e for e in layouts(seven, 1, H100, given) if not e.recompute and e.rows == 1)
    total = seven.parameters * (seven.weights + seven.gradients + seven.optimizer)
    assert one.memory.peak == pytest.approx(total + seven.kept[0], rel=1e-6)
    for e in layouts(seven, 16, H100, given):
        if e.zero == 3 and e.pipeline == e.context == e.tensor == 1:
            gathered = 2 * (seven.split + seven.blocks) / seven.depth * seven.weights
            held = e.memory.weights - gathered + e.memory.gradients + e.memory.optimizer
            assert 16 * held == pytest.approx(total, rel=1e-6)
        if e.zero == 0 and e.tensor == 8 and e.data == 2 and e.pipeline == 1:
            whole = seven.parameters - seven.split
            assert e.memory.weights == pytest.approx(seven.weights * (seven.split / 8 + whole), rel=1e-6)
        assert e.data * e.tensor * e.pipeline * e.context == 16 and seven.divisor % e.tensor == 0


def simulated(stages: int, micro: int) -> tuple[float, int]:
    """One forward one backward, event by event: the time in passes (backward takes two), and the most activations that
    the first stage holds."""
    orders = []
    for stage in range(stages):
        ahead = min(stages - stage, micro)
        order = [("f", i) for i in range(ahead)]
        for i in range(micro):
            order += [("b", i)] + ([("f", i + ahead)] if i + ahead < micro else [])
        orders.append(order)
    ended: dict[tuple[str, int, int], float] = {}
    clocks, places = [0.0] * stages, [0] * stages
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        for stage in range(stages):
            if places[stage] == len(orders[stage]):
                continue
            what, i = orders[stage][places[stage]]
            needs = [(what, i, stage - 1)] if what == "f" and stage else []
            needs += [("b", i, stage + 1)] if what == "b" and stage < stages - 1 else []
            if all(need in ended for need in needs):
                begin = max([clocks[stage], *(ended[need] for need in needs)])
                clocks[stage] = ended[what, i, stage] = begin + (1.0 if what == "f" else 2.0)
                places[stage] += 1
    held = most = 0
    for what, _ in orders[0]:
        held += 1 if what == "f" else -1
        most = max(most, held)
    return max(clocks), most


def test_the_pipeline_is_that_of_a_simulated_schedule(seven: Shape) -> None:
    even = replace(seven, depth=32)
    given = assumed(batch=64 * 2048, overlap=1.0, network=1e30)
    found = [e for e in layouts(even, 8, H100, given) if e.tensor == e.context == 1 and not e.recompute and e.zero == 0]
    assert {e.pipeline for e in found} == {1, 2, 4, 8}
    for e in found:
        time, most = simulated(e.pipeline, e.micro)
        one = e.seconds["compute"] / e.micro / 3
        assert e.seconds["compute"] + e.seconds["bubble"] == pytest.approx(time * one)
        assert e.memory.activations == pytest.approx(e.rows * even.kept[0] * most / e.pipeline, rel=1e-6)


def test_exposed_communication_is_that_of_a_ring(seven: Shape) -> None:
    given = assumed(batch=16 * 2048, overlap=0.0)
    e = next(e for e in layouts(seven, 16, H100, given)
             if (e.data, e.tensor, e.zero, e.rows, e.recompute) == (16, 1, 0, 1, False))  # fmt: skip
    sent = 0.0
    for _ in range(2 * 15):  # 15 exchanges that add up, 15 that copy, of a sixteenth each
        sent += seven.parameters * seven.weights / 16
    assert e.exposed == pytest.approx(sent / 50e9, rel=1e-6)
    e = next(e for e in layouts(seven, 8, H100, given) if (e.tensor, e.data, e.zero, e.rows) == (8, 1, 0, 1))
    each = 2 * 7 / 8 * 2048 * seven.width * 2  # bytes of one sum of a row, in a ring of 8
    assert e.seconds["tensor"] == pytest.approx(16 * seven.depth * 4 * each / 450e9)


def test_recomputation_takes_time_and_saves_memory_and_experts_divide() -> None:
    mixture = shape(pages.recipe("mixtral", "tiny"), 64)
    given = assumed(batch=64 * 64)
    found = layouts(mixture, 4, H100, given)
    by: dict[Any, Layout] = {
        (e.data, e.tensor, e.pipeline, e.context, e.expert, e.zero, e.rows, e.recompute): e for e in found
    }
    for key, e in by.items():
        if not e.recompute and e.pipeline == 1 and e.rows == 1:
            again = by[*key[:-1], True]
            assert again.seconds["compute"] > e.seconds["compute"]
    plain, routed = by[4, 1, 1, 1, 1, 0, 1, False], by[4, 1, 1, 1, 4, 0, 1, False]
    saved = plain.memory.weights - routed.memory.weights
    assert saved == pytest.approx(mixture.experts * 3 / 4 * mixture.weights, rel=1e-3)
    assert routed.seconds["expert"] > 0 == plain.seconds["expert"]


def test_published_runs_come_out() -> None:
    limits = (0.005, 0.01, 0.01, 0.05, 0.001, 0.1, 0.01)
    for (what, ours, published, _), limit in zip(plans()["rows"], limits, strict=True):
        assert ours == pytest.approx(published, rel=limit), what
    assert energy(10_000, 330, 14.8, 1.10, 0.429).kwh == pytest.approx(1.287e6, rel=0.01)


def test_the_quickest_comes_first_and_everything_fits(seven: Shape) -> None:
    given = assumed()
    found = best(seven, 64, H100, given)
    days = [e.days(seven, 140e9) for e in found]
    assert days == sorted(days) and all(fits(e, H100, given) for e in found) and len(found) == 5
    every = [e.days(seven, 140e9) for e in layouts(seven, 64, H100, given) if fits(e, H100, given)]
    assert days[0] == pytest.approx(min(every))


def test_sensitivity_is_that_of_new_plans(seven: Shape) -> None:
    made = planning.plan("x", seven, 7e9, 140e9, 64, H100, assumed())
    swing = next(s for s in made.swings if s.name == "utilisation")
    again = best(seven, 64, H100, assumed(utilisation=swing.least))[0].days(seven, 140e9)
    assert swing.days[0] == pytest.approx(again) and made.swings[0].name == "utilisation"
    assert "for the CO2 carbon" in str(made) and json.loads(json.dumps(made.to_json()))["days"] == made.days


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: parse("64xh101"), "no kind 'h101' (did you mean h100"),
        (lambda s: parse("64xtpu"), "known are v100, a100-40g, a100, h100"),
        (lambda s: parse("0xh100"), "expected a number and a kind, such as 64xh100, got '0xh100'"),
        (
            lambda s: best(s, 1, H100, assumed()),
            "a GPU has 72.0 GB, 10% of 80 kept free; the nearest that fits: 2xh",
        ),
        (
            lambda s: best(replace(s, divisor=1, depth=1, keys=0), 512, H100, assumed(batch=5e5)),
            "cannot share a batch of 244 rows",
        ),
        (
            lambda s: planning.plan("x", s, 7e9, 140e9, 64, H100, assumed(), 0.5),
            "and 0.5 are allowed; in these it reads",
        ),
        (lambda s: planning.assumptions(H100, 1e9, {"overlap": 2.0}), "--overlap is a share from 0 to 1, got 2.0"),
        (
            lambda s: planning.assumptions(H100, 1e9, {"watts": -5.0}),
            "--watts must be a finite number above 0, got -5.0",
        ),
        (lambda s: usual(10), "params: 10 is no size of a usual decoder"),
        (lambda s: shape(pages.recipe("vit", "tiny")), "this model reads no tokens"),
    ],
)
def test_what_cannot_be_is_refused_with_a_way_out(call: Callable[[Shape], Any], said: str, seven: Shape) -> None:
    with pytest.raises(ValueError) as error:
        call(seven)
    assert said in str(error.value)


def test_the_nearest_that_fits_does_and_one_less_does_not(seven: Shape) -> None:
    given = assumed()
    assert best(seven, 2, H100, given) and best(seven, 1, GPUS["h200"], given)
    with pytest.raises(ValueError, match=r"leanest on 1xh100 .recompute. needs"):
        best(seven, 1, H100, given)


def test_one_gpu_needs_what_training_here_says_before_its_first_step() -> None:
    recipe, length = pages.recipe("llama", "mini"), 256
    found = shape(recipe, length)
    one = next(e for e in layouts(found, 1, H100, assumed(batch=length)) if not e.recompute)
    ids = torch.zeros(1, length, dtype=torch.long)
    settings = Settings(steps=1, precision="bf16", chunked_loss="off")
    said = estimate(pages.build(recipe), {"input_ids": ids, "labels": ids}, causal_lm, settings)
    assert one.memory.peak == pytest.approx(said.peak, rel=0.1)
