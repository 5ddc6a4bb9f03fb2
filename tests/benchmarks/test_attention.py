"""The attention benchmark: its arithmetic, that peers do the same (slow), that models and probes are what they say."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from anyformer import parts
from anyformer.core.mixer import Mixer
from anyformer.core.recipe import Recipe
from anyformer.parts import Attention, LSHAttention
from benchmarks import (
    attention,
    attention_report,
    attention_results,
    choose,
    quality_claims,
    quality_models,
    quality_probes,
)
from benchmarks.attention_mixers import DECODING, DIM, ENTRIES
from benchmarks.attention_peers import PEERS
from benchmarks.attention_worker import Contestant
from benchmarks.contest import Worker

NO_MIXING = {  # a base, positions, of pictures alone, of two streams or a medium, attention with something around it
    "Chunked", "ConvPositions", "Windows", "Grouped", "JointAttention", "LastJointAttention", "MediaAttention",
    "ContextAttention", "Shifted", "TurnedAttention", "TurnedInput", "NormedPositions", "ConformerEntry", "ConvModule",
}  # fmt: skip
LENGTHS = (256, 1024, 2048, 4096, 8192, 16384)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_exponents_are_found_where_the_growth_has_settled(power: float) -> None:
    assert attention_results.exponent({n: 5.0 + 1e-9 * n**power for n in LENGTHS if n < 2048}) is None
    early = {256: 100.0, 1024: 100.0}  # what does not grow yet does not count
    found = attention_results.exponent(early | {n: 1e-9 * n**power for n in LENGTHS if n >= 2048})
    assert found == pytest.approx(power)


@pytest.mark.parametrize(("power", "said"), [(1.0, "held"), (1.2, "missed"), (2.0, "missed")])
def test_what_is_not_linear_is_called_missed(power: float, said: str) -> None:
    assert attention_report.grown({n: float(n) ** power for n in LENGTHS}, "linear")[2] == said


def test_longer_texts_are_left_out_beyond_the_limits() -> None:
    small = {"forward": [0.1], "both": [0.2], "forward_bytes": 1, "both_bytes": 2}

    def why(now: dict[str, Any]) -> str:
        return attention.why_stop({"512": small, "1024": now}, 1024)

    assert why(small) == ""
    assert why(small | {"both": [0.4]}) == ""
    assert "s beyond 1,024" in why(small | {"both": [attention.SECONDS + 1]})
    assert "GiB beyond 1,024" in why(small | {"both_bytes": attention.BYTES + 1})
    assert why({"over": "more than 10 GiB"}) == "more than 10 GiB at 1,024"


@pytest.mark.parametrize(("share", "power", "goes"), [(0.6, 1, False), (0.4, 1, True), (0.4, 2, False), (0.2, 2, True)])
def test_what_would_take_too_long_is_not_begun(share: float, power: int, goes: bool) -> None:
    points: dict[str, Any] = {
        str(n): {"both": [share * attention.SECONDS * (n / 1024) ** power], "both_bytes": n} for n in (512, 1024)
    }
    assert (attention.why_stop(points, 1024) == "") is goes
    points = {str(n): {"both": [0.1], "both_bytes": share * attention.BYTES * (n / 1024) ** power} for n in (512, 1024)}
    assert (attention.why_stop(points, 1024) == "") is goes


def test_a_mixer_is_behind_or_level_at_the_lengths_at_which_it_is() -> None:
    slow, fast, even = (2.0, 1.9, 2.1), (0.9, 0.8, 0.95), (0.98, 0.95, 1.01)
    assert attention_report.verdict({1024: slow, 2048: slow}) == "ahead at every length"
    assert attention_report.verdict({1024: slow, 2048: fast}) == "behind at 2,048"
    assert attention_report.verdict({1024: even, 2048: fast, 4096: even}) == "behind at 2,048; level at 1,024, 4,096"
    assert attention_report.verdict({}) == "not measured"


def test_what_a_longer_text_left_behind_does_not_count_as_memory() -> None:
    memory = Worker("attention_worker", "memory of local, chunks of 128")
    before, long, after = (memory.ask(length=n, backward=True)["bytes"] for n in (512, 4096, 512))
    memory.close()
    assert long > 4 * before
    assert after == pytest.approx(before, rel=0.25)


def test_the_crossing_is_where_a_mixer_stays_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(seconds: list[float]) -> dict[str, Any]:
        return {"points": {str(n): {"both": [s]} for n, s in zip((256, 512, 1024), seconds, strict=True)}}

    cost = {"full, sdpa": found([2, 2, 2]), "a": found([1, 3, 1]), "b": found([3, 3, 3]), "c": found([1, 1, 1])}
    monkeypatch.setattr(choose, "results", lambda kind: cost if kind == "attention-cost" else {})
    tables = choose.Tables()
    assert [choose.crossing(tables, name) for name in "abc"] == [1024, None, 256]


def test_every_peer_stands_beside_one_of_ours() -> None:
    assert {peer.ours for peer in PEERS.values()} <= set(ENTRIES)


def mixers(recipe: Recipe) -> Iterator[type]:
    """The kinds of parts in a recipe."""
    yield recipe.part
    for value in recipe.options.values():
        for inner in value if isinstance(value, list | tuple) else [value]:
            if isinstance(inner, Recipe):
                yield from mixers(inner)


def test_every_mixer_is_measured() -> None:
    """A mixer of `parts` that is new has to be given a line."""
    measured = {part for entry in ENTRIES.values() for part in mixers(entry.recipe(1024))}
    every = {
        value
        for module in pkgutil.walk_packages(parts.__path__, "anyformer.parts.")
        for value in vars(importlib.import_module(module.name)).values()
        if isinstance(value, type) and issubclass(value, Mixer) and value is not Mixer
    }
    assert Attention in every and LSHAttention in every
    assert {part.__name__ for part in every - measured} == NO_MIXING


@pytest.mark.parametrize("name", ENTRIES)
def test_every_mixer_runs_forward_and_backward(name: str) -> None:
    contestant = Contestant(name)
    contestant.pass_(256, True)()
    slopes = [p.grad for p in contestant.parameters]
    assert all(bool(s.isfinite().all()) for s in slopes)
    assert any(bool(s.any()) for s in slopes) or name == "Fourier"  # which has no parameters


@pytest.mark.parametrize("name", DECODING)
def test_every_decoder_has_a_state(name: str) -> None:
    mixer = DECODING[name].build(DIM)
    assert mixer.start(1, 8, next(mixer.parameters())) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_does_the_same(name: str) -> None:
    for module in (PEERS[name].package.replace("-", "_"), "torch"):
        pytest.importorskip(module, reason=f"needs pip install {PEERS[name].package}")
    most = 1e-3 if "nystrom" in name else 1e-5  # its heads share one first guess of the inverse
    assert Contestant(f"peer: {name}").error(512)["error"] < most


def test_models_of_a_group_have_the_same_number_of_parameters() -> None:
    for rows in quality_models.GROUPS.values():
        for variant in rows.values():
            count = quality_models.parameters(quality_models.fitted(variant))
            assert abs(count / quality_models.wanted(variant.encoder) - 1) < 0.02


def asked(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, and the labels that count with their rows and places."""
    return quality_probes.TASKS[task](torch.Generator().manual_seed(0), quality_probes.FULL[task])


def test_answers_of_the_probes_can_be_known() -> None:
    ids, labels = asked("copying")
    assert bool((labels[:, 40:] == ids[:, :40]).all()) and bool((labels[:, :40] == -100).all())
    ids, labels = asked("parity")
    assert bool((labels == ids.cumsum(1) % 2).all())
    for task in ("recall", "induction", "needle"):
        ids, labels = asked(task)
        for text, wanted in zip(ids.tolist(), labels.tolist(), strict=True):
            for place in (t for t, answer in enumerate(wanted) if answer >= 0):
                earlier = text.index(text[place])  # the same symbol, first time
                assert earlier < place and text[earlier + 1] == wanted[place], task


def test_a_claim_without_its_runs_is_not_judged() -> None:
    assert all(claim.check(quality_claims.Evidence({})) is None for claim in quality_claims.CLAIMS)
    run = {"bits": {"1": 2.0, "8": None}, "scaled": {}}
    evidence = quality_claims.Evidence({("positions", "learned"): [run]})
    said = quality_claims.stretches("learned", False)(evidence)
    assert said == ("2.000 bits at 1 x, cannot at 8 x", True)


def test_a_difference_smaller_than_the_spread_of_seeds_is_not_judged() -> None:
    def runs(*bits: float) -> list[quality_claims.Found]:
        return [{"bits": {"1": b}} for b in bits]

    found = {("norms", "a"): runs(2.0, 2.1), ("norms", "b"): runs(2.1, 2.2), ("norms", "c"): runs(3.0)}
    evidence = quality_claims.Evidence(found)
    assert evidence.spread("norms") == pytest.approx(0.005**0.5)
    assert evidence.noise("norms", "a", "c") == pytest.approx(2 * 0.005**0.5 * 1.5**0.5)
    assert [quality_claims.below("norms", x, y)(evidence)[1] for x, y in ("ab", "ac", "ca")] == [None, True, False]
    assert [quality_claims.near("norms", x, y)(evidence)[1] for x, y in ("ba", "ca", "ac")] == [True, False, True]
