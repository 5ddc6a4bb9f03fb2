"""The benchmarks' arithmetic, their report and what happens without a peer; at the end (slow) each of them once."""

import importlib
import re
from typing import Any, cast

import pytest
import torch

from anyformer.parts import products
from benchmarks import contest, machine, profile, report
from benchmarks.contest import Contestant, Died, Missing, Worker
from benchmarks.report import Claim, Section
from benchmarks.train_step import TOKENS, VOCAB, Shape

PAIR = {"ours": Contestant("we"), "peer": Contestant("they", against="ours")}


class Fake:
    """Stands for a process: answers from a list, then dies."""

    def __init__(self, seconds):
        self.seconds = list(seconds)

    def ask(self, **request):
        if not self.seconds:
            raise Died("its process ended with code -4: illegal\ninstruction")
        return {"seconds": self.seconds.pop(0)}


def section(title="Loading", ratio=(2.0, 1.5, 3.0), what="load", peer="they"):
    return Section(title, "How.", ["| | s |", "| we | 1 |"], [Claim(what, peer, "1 s", "2 s", ratio, 9)], ["quiet"])


def test_ratios_are_of_the_same_round_and_quartiles_lie_around_the_median():
    assert contest.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 2.0, 4.0)
    assert contest.spread([7.0]) == (7.0, 7.0, 7.0)
    # the machine slows down tenfold, and the ratio stays
    assert contest.ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError):
        contest.ratio([1.0], [1.0, 2.0])


def test_everybody_takes_one_turn_a_round_and_nobody_is_always_first():
    played = list(contest.turns(["a", "b", "c"], 6))
    rounds = [[name for r, name in played if r == n] for n in range(6)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert {names[0] for names in rounds} == {names[-1] for names in rounds} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("ratio", "rounds", "says"),
    [
        ((1.2, 1.2, 1.2), 1, "1 round, no verdict"),
        ((1.2, 1.1, 1.3), 3, "3 rounds, no verdict"),
        ((1.2, 1.1, 1.3), 4, "ahead"),
        ((0.8, 0.7, 0.9), 4, "behind"),
        ((1.1, 0.9, 1.2), 4, "no difference beyond the noise"),
    ],
)
def test_verdict(ratio, rounds, says):
    assert report.verdict(ratio, rounds) == says


def test_a_request_carries_its_round_so_that_each_round_can_have_its_seed():
    class Echo:
        def ask(self, **request):
            return request

    answers = contest.compete({"ours": cast(Worker, Echo())}, PAIR, 3, {"steps": 1}, [])
    assert [a["round"] for a in answers["ours"]] == [0, 1, 2]


def test_results_name_the_instruction_set_and_are_never_of_two_machines_unsaid():
    assert f"({torch.backends.cpu.get_cpu_capability()})" in machine.facts(1) and "1 threads used" in machine.facts(1)
    assert machine.recorded([{"machine": "A"}, {"machine": "A"}]) == "A"
    assert machine.recorded([{"bits": 1}]) == machine.UNKNOWN
    assert "cannot be compared: A / B" in machine.recorded([{"machine": "B"}, {"machine": "A"}])


def test_what_is_committed_claims_no_more_than_the_rule_allows():
    for line in (contest.ROOT / "docs" / "benchmarks.md").read_text().splitlines():
        if match := re.search(r"([\d.]+) \(([\d.]+)-([\d.]+)\) \| (ahead|behind|no difference[^|]*) \|$", line):
            middle, low, high = map(float, match.groups()[:3])
            inside = low <= 1 <= high and 1 not in (low, high)  # rounded figures: 1.00 may be either side of 1
            assert not inside or match[4].startswith("no difference"), line
            assert inside or 1 in (low, high) or match[4] == ("ahead" if middle > 1 else "behind"), line


def test_a_peer_that_dies_is_a_note_and_the_rest_goes_on():
    notes: list[str] = []
    workers: dict[str, Any] = {"ours": Fake([1, 2, 3]), "peer": Fake([1])}
    answers = contest.compete(workers, PAIR, 3, {}, notes)
    assert [a["seconds"] for a in answers["ours"]] == [1, 2, 3]
    assert set(answers) == set(workers) == {"ours"}
    assert notes == ["they was not measured: its process ended with code -4: illegal instruction."]


def test_if_we_die_it_is_an_error():
    workers: dict[str, Any] = {"ours": Fake([]), "peer": Fake([1])}
    with pytest.raises(Died):
        contest.compete(workers, PAIR, 1, {}, [])


def test_a_peer_without_its_environment_is_a_note():
    notes: list[str] = []
    lone = {"peer": Contestant("they", env="nowhere", against="ours")}
    assert contest.started("train_step", lone, notes) == {}
    assert "no .venv-nowhere" in notes[0] and "BENCH_NOWHERE_PYTHON" in notes[0]
    with pytest.raises(Missing):
        contest.started("train_step", {"ours": Contestant("we", env="nowhere")}, notes)


def test_a_process_says_what_is_not_installed_and_why_it_died():
    with pytest.raises(Missing, match="no_such_benchmark"):
        Worker("no_such_benchmark", "x")
    with pytest.raises(Died, match="has no attribute 'build'"):
        Worker("contest", "x")


def test_writing_keeps_the_other_sections(tmp_path):
    path = tmp_path / "docs" / "benchmarks.md"
    report.write(path, [section("A"), section("B")], "machine 1")
    report.write(path, [section("B", (0.5, 0.4, 0.6))], "machine 2")
    text = path.read_text()
    a, b = text.split("## A")[1].split("## B")
    assert "machine 1" in a and "ahead" in a and "machine 2" in b and "| behind |" in b
    assert text.count(report.HEADER) == 1
    assert [p.name for p in path.parent.iterdir()] == ["benchmarks.md"]


def test_the_readme_gets_the_claims_of_all_sections_and_keeps_the_rest(tmp_path):
    docs, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    (what, peer), (other, whom) = report.HEADLINES[1], report.HEADLINES[0]
    shown = [section("A", what=what, peer=peer), section("B", (0.5, 0.4, 0.6), other, whom), section("C")]
    report.write(docs, shown, "here")
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert report.summarise(readme, docs)
    once = readme.read_text()
    assert once.startswith(f"before\n{report.BEGIN}\n{report.README}\n|---") and once.endswith(f"{report.END}\nafter\n")
    first, second = once.split(report.END)[0].splitlines()[-2:]
    assert first == f"| {other} | 1 s | 2 s, {whom} | 0.50 (0.40-0.60) | behind |"
    assert second == f"| {what} | 1 s | 2 s, {peer} | 2.00 (1.50-3.00) | ahead |"
    assert "old" not in once and "they" not in once and "CPU" in once
    assert report.summarise(readme, docs) and readme.read_text() == once


def test_a_readme_without_the_marks_is_left_alone(tmp_path):
    docs, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    report.write(docs, [section()], "here")
    readme.write_text("mine")
    assert not report.summarise(readme, docs) and readme.read_text() == "mine"


def test_our_readme_has_the_figures_of_the_report(tmp_path):
    text, copy = (contest.ROOT / "README.md").read_text(), tmp_path / "README.md"
    copy.write_text(text)
    assert report.summarise(copy, contest.ROOT / "docs/benchmarks.md") and copy.read_text() == text


@pytest.mark.parametrize(("precision", "least"), [("fp32", 1 << 17), ("fp32", 0), ("bf16", 0)])
def test_a_profile_finds_every_product_of_a_step(precision, least, monkeypatch):
    """In float32 also those of oneDNN, on processors where they are taken."""
    shape = Shape(layers=2, heads=2, dim=32, gated=96)
    monkeypatch.setattr(profile, "LARGE", shape)
    monkeypatch.setattr(products, "LEAST", least)
    monkeypatch.setattr(machine, "matmul_rate", lambda kind: 1e9)
    answer = profile.build("ours_gpt")[1]({"steps": 1, "precision": precision})
    kinds = answer["kinds"]
    assert 0 <= answer["outside"] < 1
    found = {label: work for label, (_, work, _) in kinds.items() if work}
    dense = shape.layers * 12 * shape.dim**2 + VOCAB * shape.dim
    assert sum(found.values()) == 6 * TOKENS * dense  # forward, the gradient of what came in, that of weights
    each = [sum(work for label, work in found.items() if label.startswith(f"product {kind}"))
            for kind in ("forward", "for what came in", "for weights")]  # fmt: skip
    assert each == [2 * TOKENS * dense] * 3
    parts = {
        "Attention",
        "Attention, backward",
        "LayerNorm",
        "LayerNorm, backward",
        "MLP",
        "optimiser",
        "clipping",
        "loss",
    }
    assert parts <= set(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_step", "decode", "load", "imports", "profile"])
def test_each_benchmark_runs(name):
    try:
        found = importlib.import_module(f"benchmarks.{name}").run(rounds=1)
    except Missing as error:
        pytest.skip(str(error))
    cells = {line.count("|") for line in found.table}
    assert len(found.table) > 2 and len(cells) == 1
    assert all(claim.ratio[0] > 0 for claim in found.claims)
    assert "different texts" not in str(found.notes) and "tokens differ" not in str(found.notes)


def test_every_headline_stands_in_the_report():
    text = (contest.ROOT / "docs" / "benchmarks.md").read_text()
    for what, peer in report.HEADLINES:
        assert re.search(rf"^\| {re.escape(what)} \|.*\| {re.escape(peer)} \|", text, re.M), (what, peer)
