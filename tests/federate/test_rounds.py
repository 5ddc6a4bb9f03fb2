"""Rounds without processes: centralised SGD, weights, secure = plain, drop-outs, lies, unlike clients, other pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.federate.federate import listed, mechanism
from anyformer.federate.host import STAGES, Vector
from anyformer.federate.options import FederateOptions
from anyformer.federate.privacy import Privacy
from anyformer.federate.wire import Message
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train.tasks import registry
from tests.federate.conftest import Here, joined, reviews, write

SGD: dict[str, Any] = {"optimizer": "sgd", "schedule": "constant", "weight_decay": 0.0, "grad_clip": float("inf")}


def options(bert: str, clients: Path, **more: Any) -> FederateOptions:
    return FederateOptions(bert, clients=clients, **{"rounds": 3, "lr": 1e-2, "device": "cpu", "batch": 8, **more})


@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_local_step_on_equal_data_is_centralised_sgd(bert: str, clients: Path, method: Any) -> None:
    o = options(bert, clients, method=method, local_steps=1, lr=0.5, **SGD)
    server, here, lm = joined(o)
    goals = [host.clients[name].goal for name, host in here.hosts.items()]
    vector = Vector(lm)
    optimizer = torch.optim.SGD(vector.parameters.values(), 0.5)
    lm.train()
    for number in range(1, 4):
        server.round(number)
        server.publish(server.weights)
        optimizer.zero_grad()
        for goal in goals:  # a batch of all clients' rows at once: the mean over 24 examples
            assert goal is not None
            batch = goal.rows.rows((number - 1) * 8, 8)
            labels = batch.pop("labels")
            torch.nn.functional.cross_entropy(lm(**batch).logits, labels, reduction="sum").div(24).backward()
        optimizer.step()
        assert np.abs(server.weights - vector.read()).max() < 1e-6


def test_the_mean_has_the_weights_of_examples(bert: str, tmp_path: Path) -> None:
    write(tmp_path / "small.csv", reviews("film", 20))
    write(tmp_path / "large.csv", reviews("book", 60))
    server, here, _ = joined(options(bert, tmp_path))
    before, row = server.weights.copy(), server.round(1)
    updates = {n: a.arrays["update"].astype(np.float64) for n, m, a in here.seen if m.kind == "train"}
    assert {n: server.facts[n]["examples"] for n in updates} == {"small": 18, "large": 54}
    expected = (18 * updates["small"] + 54 * updates["large"]) / 72
    assert np.abs(server.weights - (before + expected)).max() < 1e-7 and row.answered == ["large", "small"]


@pytest.mark.parametrize("epsilon", [None, 50.0])
def test_a_secure_round_is_a_plain_one_to_the_step_of_the_grid(bert: str, clients: Path, epsilon: float | None) -> None:
    pytest.importorskip("cryptography", reason="secure sums need cryptography")
    made = []
    for secure in (False, True):
        server, here, _ = joined(options(bert, clients, secure=secure, epsilon=epsilon, local_steps=2))
        if epsilon:
            server.privacy = Privacy(1.0, 0.0, 1.0, 3, 1e-5)  # no noise, to compare
        server.round(1)
        made.append(server.weights)
    limit = 1.0  # with epsilon it is clip, 1 as well
    step = limit / (2**23 - 1)
    assert np.abs(made[0] - made[1]).max() <= 3 * step / 2 + 1e-7
    sent = [a.arrays["words"] for _, m, a in here.seen if m.kind == "train"]
    assert {words.dtype.str for words in sent} == {"<u4"}
    assert all(abs((words >> 31).mean() - 0.5) < 0.05 for words in sent)  # what the server saw is noise


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_may_leave_at_any_stage_of_a_secure_round(bert: str, clients: Path, stage: str) -> None:
    pytest.importorskip("cryptography", reason="secure sums need cryptography")
    plain, secure = (joined(options(bert, clients, secure=s, local_steps=1))[:2] for s in (False, True))
    for (server, here), at in ((plain, "train"), (secure, stage)):
        if server is plain[0] and stage == "reveal":
            continue

        def change(name: str, asked: Message, answer: Message, at: str = at) -> Any:
            return ConnectionError("killed") if name == "film" and asked.kind == at else answer

        here.change = change
    rows = [server.round(1) for server, _ in (plain, secure)]
    assert rows[1].dropped == {"film": "gone: killed"} and not rows[1].aborted and "film" in secure[0].out
    assert rows[1].answered == (["book", "film", "song"] if stage == "reveal" else ["book", "song"])
    assert np.abs(plain[0].weights - secure[0].weights).max() < 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_a_round_is_aborted_and_changes_nothing(bert: str, clients: Path, stage: str) -> None:
    pytest.importorskip("cryptography", reason="secure sums need cryptography")
    server, here, _ = joined(options(bert, clients, secure=True, local_steps=1))
    here.change = lambda n, m, a: Message("dropped") if n != "song" and m.kind == stage else a
    before, row = server.weights.copy(), server.round(1)
    assert f"1 of 3 clients are left at {stage}, and 2 are needed: no sum is known" in row.aborted
    assert (server.weights == before).all() and not server.out and not row.answered
    later = [m.kind for _, m, _ in here.seen]
    after = STAGES[STAGES.index(stage) + 1 :]
    assert not set(later) & set(after)
    here.change = lambda n, m, a: a
    assert not server.round(2).aborted and (server.weights != before).any()


def _other(answer: Message, **facts: Any) -> Message:
    return Message(answer.kind, {**answer.facts, **facts}, answer.arrays)


def _update(answer: Message, made: Any) -> Message:
    return Message(answer.kind, answer.facts, {"update": made(answer.arrays["update"])})


LIES: dict[str, tuple[Any, str]] = {
    "shape": (lambda a: _update(a, lambda u: u[:-1]), r"its update is <f4 \[\d+\]; expected <f4 \[\d+\]"),
    "two axes": (lambda a: _update(a, lambda u: u[None]), r"its update is <f4 \[1, \d+\]"),
    "dtype": (lambda a: _update(a, lambda u: u.astype("<u4")), r"its update is <u4"),
    "nothing": (lambda a: Message("ok", a.facts), "its update is nothing"),
    "more examples": (lambda a: _other(a, examples=10**9), "it says 1000000000 examples, and said 36 before"),
    "examples as text": (lambda a: _other(a, examples="36"), "it says '36' examples"),
    "NaN": (lambda a: _update(a, lambda u: u * np.float32("nan")), "values that are not finite"),
    "inf": (lambda a: _update(a, lambda u: u + np.float32("inf")), "values that are not finite"),
    "too long": (lambda a: _update(a, lambda u: u * 100), r"its update has the length .*, and 1 is allowed"),
    "no loss": (lambda a: _other(a, loss=None), "its answer has no loss"),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_a_client_that_lies_is_named_and_left_out_and_the_round_goes_on(lie: str, bert: str, clients: Path) -> None:
    made, said = LIES[lie]
    server, here, _ = joined(options(bert, clients, clip=1.0, local_steps=1))
    here.change = lambda n, m, a: made(a) if n == "song" and m.kind == "train" else a
    row = server.round(1)
    assert row.answered == ["book", "film"] and not row.aborted and np.isfinite(server.weights).all()
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(server.out["song"])
    assert server.round(2).drawn == ["book", "film"]


@pytest.mark.parametrize("count", [0, -3, 2.5, True, None, 2**40])
def test_a_number_of_examples_that_is_none_is_refused_at_the_door(count: Any, bert: str, clients: Path) -> None:
    o = options(bert, clients)
    here = Here(o, listed(clients))
    here.change = lambda n, m, a: _other(a, examples=count) if n == "film" and m.kind == "prepare" else a
    server = joined(o, transport=here)[0]
    assert "its number of examples is" in server.out["film"] and server.present() == ["book", "song"]


def test_labels_measures_and_places_of_another_form_are_not_believed(bert: str, clients: Path) -> None:
    pytest.importorskip("cryptography", reason="secure sums need cryptography")
    o = options(bert, clients, secure=True, local_steps=1)
    here = Here(o, {**listed(clients), "liar": next(clients.iterdir())})
    here.change = lambda n, m, a: _other(a, names="good") if n == "liar" and m.kind == "introduce" else a
    server = joined(o, transport=here)[0]
    assert "its labels are 'good'; expected a list" in server.out["liar"] and len(server.present()) == 3
    here.change = lambda n, m, a: _other(a, measure=float("nan")) if n == "film" and m.kind == "measure" else a
    row = server.round(1)
    server.measure(row)
    assert list(row.measures) == ["book", "song"] and row.mean is not None and np.isfinite(row.mean)
    here.change = lambda n, m, a: _other(a, places=["1", 2]) if n == "film" and m.kind == "shares" else a
    row = server.round(2)
    assert "its places are ['1', 2]; expected" in server.out["film"] and row.answered == ["book", "song"]


def test_too_few_answers_abort_a_plain_round_and_one_client_ends_the_run(bert: str, clients: Path) -> None:
    server, here, _ = joined(options(bert, clients, local_steps=1))
    here.change = lambda n, m, a: Message("dropped") if n != "song" and m.kind == "train" else a
    row = server.round(1)
    assert "1 of 3 clients answered, and more than half are needed" in row.aborted
    here.change = lambda n, m, a: ConnectionError("dead") if n != "song" else a
    server.round(2)
    with pytest.raises(ValueError, match=r"a federation needs two clients, and 1 can take part.*film: gone: dead"):
        server.round(3)


def test_saturated_values_end_the_run(bert: str, clients: Path) -> None:
    pytest.importorskip("cryptography", reason="secure sums need cryptography")
    server = joined(options(bert, clients, secure=True, limit=1e-6))[0]
    with pytest.raises(ValueError, match=r"book: .*% of the values lie outside of ±1e-06.*larger --limit"):
        server.round(1)


def test_unlike_labels_are_joined_and_bad_clients_left_out_by_name(bert: str, tmp_path: Path) -> None:
    write(tmp_path / "good.csv", [row for row in reviews("film") if row["label"] == "good"])
    write(tmp_path / "bad.csv", [row for row in reviews("book") if row["label"] == "bad"])
    write(tmp_path / "mixed.csv", [{**row, "label": "so-so"} for row in reviews("song", 6)] + reviews("song"))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("text,label\n")
    write(tmp_path / "other.csv", [{"text": "a", "stars": "1"}] * 4)
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "label": \n')
    write(tmp_path / "single.csv", reviews("one", 1))
    server, _, lm = joined(options(bert, tmp_path))
    assert server.plan["names"] == ["bad", "good", "so-so"] and lm.config.classes == 3
    assert "bad has no example of good, so-so" in server.notes and server.present() == ["bad", "good", "mixed"]
    assert set(server.out) == {"empty", "header", "other", "broken", "single"}
    assert "empty" in server.out["header"] or "no examples" in server.out["header"]
    assert "stars" in server.out["other"] and "at least 2 rows" in server.out["single"]
    assert not server.round(1).aborted


def test_one_class_in_all_is_an_error(bert: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.csv", [row for row in reviews(name) if row["label"] == "good"])
    with pytest.raises(ValueError, match="all clients together have one class only: 'good'"):
        joined(options(bert, tmp_path))


def test_clients_are_drawn_alike_for_a_seed_and_nothing_is_told_when_blind(bert: str, clients: Path) -> None:
    drawn = []
    for _ in range(2):
        server, here, _ = joined(options(bert, clients, sample=0.5, blind=True, local_steps=1))
        rows = [server.round(number) for number in range(1, 4)]
        server.measure(rows[-1])
        drawn.append([row.drawn for row in rows])
        assert rows[-1].mean is None and not [m for _, m, _ in here.seen if m.kind == "measure"]
        assert all(row.loss is None for row in rows)
        assert not any({"loss", "clipped"} & set(a.facts) for _, m, a in here.seen if m.kind == "train")
    assert drawn[0] == drawn[1] and len({tuple(names) for names in drawn[0]}) > 1


def test_under_epsilon_updates_are_clipped_noised_and_not_weighted(bert: str, tmp_path: Path) -> None:
    write(tmp_path / "small.csv", reviews("film", 20))
    write(tmp_path / "large.csv", reviews("book", 60))
    server, here, _ = joined(options(bert, tmp_path, epsilon=50.0, clip=0.01, sample=1.0))
    server.privacy = mechanism(server.o, 2, len(server.weights))
    assert server.privacy is not None
    before, row = server.weights.astype(np.float64), server.round(1)
    updates = [a.arrays["update"].astype(np.float64) for _, m, a in here.seen if m.kind == "train"]
    assert row.clipped == 1.0 and all(np.linalg.norm(u) == pytest.approx(0.01, rel=1e-5) for u in updates)
    left = server.weights - before - (updates[0] + updates[1]) / 2
    assert left.std() == pytest.approx(server.privacy.noise * 0.01 / 2, rel=0.03)
    assert row.epsilon == server.privacy.spent(1) and server.privacy.spent(3) <= 50.0


def _decoder(folder: Path, clients: Path) -> None:
    made = af.build("gpt", "tiny", vocab=257, seed=0)
    made.tokenizer = Tokenizer.bytes_level()
    made.save(folder)
    for name in "ab":
        rows = [{"prompt": f"say {i}", "response": f"{name} {i}."} for i in range(12)]
        (clients / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _seq2seq(folder: Path, clients: Path) -> None:
    made = af.build("t5", "tiny", vocab=257, seed=0)
    made.tokenizer = Tokenizer.bytes_level()
    made.save(folder)
    for name in "ab":
        write(clients / f"{name}.csv", [{"source": f"{name} {i}", "target": f"{i}"} for i in range(12)])


def _images(folder: Path, clients: Path) -> None:
    pil = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    af.build("vit", "tiny", seed=0).save(folder)
    for name in "ab":
        for i in range(6):
            (place := clients / name / ("dark", "light")[i % 2]).mkdir(parents=True, exist_ok=True)
            pil.new("RGB", (32, 32), (255 * (i % 2),) * 3).save(place / f"{i}.png")


def _tags(folder: Path, clients: Path) -> None:
    made = af.build("roberta", "tiny", vocab=300, seed=0)
    made.tokenizer = registry.add_special_tokens(Tokenizer.bytes_level(), "tag")
    made.save(folder)
    for name, tag in (("a", "X"), ("b", "Y")):
        rows = [{"words": ["ab", "cd"], "labels": ["O", tag]} for _ in range(8)]
        (clients / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("page", [_decoder, _seq2seq, _images, _tags])
def test_any_page_that_can_be_tuned_can_be_tuned_together(page: Any, tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    page(tmp_path / "model", tmp_path / "clients")
    o = options(str(tmp_path / "model"), tmp_path / "clients", lr=1e-2, local_steps=2, batch=4)
    server, _, lm = joined(o)
    before = server.weights.copy()
    for number in range(1, 3):
        row = server.round(number)
        server.publish(server.weights)
        server.measure(row)
        assert not row.aborted and row.mean is not None and np.isfinite(row.mean) and not row.dropped
    assert not server.out and (server.weights != before).any()
    Vector(lm).write(server.weights)
    assert (Vector(lm).read() == server.weights).all()


def test_local_training_refuses_a_loss_that_is_not_finite(bert: str, clients: Path) -> None:
    o = options(bert, clients, lr=1e30, **SGD)
    server, _, _ = joined(o)
    row = server.round(1)
    assert "more than half are needed" in row.aborted
    assert all("lower lr" in why for why in row.dropped.values()) and len(row.dropped) == 3, row.dropped
