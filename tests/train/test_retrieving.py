"""Retriever and generator learn together; a run that goes on is the one that was not interrupted; collapse is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.know import Encoder, index
from anyformer.know.reader import Passages, Reader
from anyformer.train import finetune, train
from anyformer.train.tasks import retrieving
from anyformer.train.tasks.retrieving import Watch
from tests.know.test_reader import FACTS, indexed, joined, parts

KEPT = {"quiet": True, "held_out": 0.2, "method": "full", "batch": 3, "lr": 3e-3, "seed": 1}


@pytest.fixture
def place(tmp_path: Path) -> dict[str, Any]:
    bert, t5 = parts()
    idx = indexed(tmp_path, bert)
    rows = [{"question": f"what is a {noun}?", "answer": kind} for noun, kind in FACTS.items()]
    data = tmp_path / "qa.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    joined(bert, t5, documents=True, passages=2).save(tmp_path / "both")
    joined(bert, t5, passages=2).save(tmp_path / "frozen")
    return {"model": str(tmp_path / "both"), "data": str(data), "index": str(idx), "frozen": str(tmp_path / "frozen")}


def of(place: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**{n: v for n, v in place.items() if n != "frozen"}, **KEPT, **more}


@pytest.mark.filterwarnings("ignore:written in anyformer")
def test_both_encoders_learn_and_a_resumed_run_is_the_straight_one(place: dict[str, Any], tmp_path: Path) -> None:
    before = af.load(place["model"]).state_dict()
    straight = finetune(**of(place, steps=7, refresh=3, save_every=2, warmup=0, out=tmp_path / "a"))
    after = straight.model.state_dict()
    for side in ("question", "document", "generator"):
        assert any(not torch.equal(before[n], after[n]) for n in after if n.startswith(side))
    kept = sorted(p.name for p in (tmp_path / "a").glob("passages-*"))
    assert kept[-1] == "passages-000006.safetensors" and len(kept) < 3

    class Stop(Exception):
        pass

    made, count = retrieving.FoundRows.made, [0]

    def stops(self: Any, *args: Any, **options: Any) -> Any:
        count[0] += options.get("watched", False)
        if count[0] == 7:  # step 5, between two refreshes and after the checkpoint of step 4
            raise Stop
        return made(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieving.FoundRows, "made", stops)
        with pytest.raises(Stop):
            finetune(**of(place, steps=7, refresh=3, save_every=2, warmup=0, out=tmp_path / "b"))
    resumed = finetune(**of(place, steps=7, refresh=3, save_every=2, warmup=0, out=tmp_path / "b", resume=True))
    assert resumed.steps == 7
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, after[name]), name


def test_passages_are_embedded_again_every_refresh_steps(place: dict[str, Any], tmp_path: Path) -> None:
    calls: list[int] = []
    refresh = Reader.refresh

    def counted(self: Reader) -> None:
        calls.append(1)
        refresh(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "refresh", counted)
        finetune(**of(place, steps=6, refresh=2, out=tmp_path / "a"))
        often = len(calls)
        calls.clear()
        finetune(**of(place, steps=6, refresh=0, out=tmp_path / "b"))
    assert (often, len(calls)) == (4, 2)  # of the reader when it is made, then of steps 0, 2 and 4; or 0 alone


def test_a_model_without_encoder_of_passages_learns_to_ask_for_the_vectors_of_the_index(
    place: dict[str, Any], tmp_path: Path
) -> None:
    tuned = finetune(**of(place, model=place["frozen"], steps=4, out=tmp_path / "a"))
    assert tuned.folder is not None
    again = af.load(tuned.folder)
    assert json.loads((tuned.folder / "config.json").read_text())["dataset"] == "small"
    Reader(again, Passages.of(place["index"]))
    with pytest.raises(ValueError, match=r"refresh=2 .* no encoder of passages"):
        finetune(**of(place, model=place["frozen"], steps=4, refresh=2, out=tmp_path / "b"))
    assert not list((tmp_path / "b").glob("step-*"))


@pytest.mark.filterwarnings("ignore:written in anyformer")
def test_train_makes_a_model_from_nothing(place: dict[str, Any], tmp_path: Path) -> None:
    small = {
        "question.dim": 16,
        "question.hidden": 20,
        "question.depth": 1,
        "t5.dim": 16,
        "t5.hidden": 20,
        "passages": 2,
    }
    run = train(
        "rag", data=place["data"], index=place["index"], vocab=300, steps=3, batch=2, refresh=2, out=tmp_path / "run",
        quiet=True, overrides=small,
    )  # fmt: skip
    assert run.task == "retrieve" and run.held_out is not None and run.baseline is not None
    assert Reader(af.load(run.checkpoint), Passages.of(place["index"])).ask(["what is a cat?"], max_new_tokens=3)


def test_collapse_is_seen_where_it_is_planted(place: dict[str, Any], tmp_path: Path) -> None:
    """An encoder of questions that hears nothing: each gets the same passages. A sound one does not."""
    texts = {f"thing{i}": "animal" for i in range(80)}
    bert, t5 = parts()
    big = tmp_path / "big"
    big.mkdir()
    idx = indexed(big, bert, "small", texts)
    for deaf, wanted in ((True, 1), (False, 0)):
        model = joined(bert, t5, documents=True, passages=2).eval()
        if deaf:
            for weight in model.question.parameters():
                weight.data.zero_()
            model.question.blocks[-1].norm.ffn.bias.data.normal_()
        else:
            model.document.load_state_dict(model.question.state_dict())
        said: list[str] = []
        reader = Reader(model, Passages.of(idx))
        watch = Watch(len(reader.passages.rows), said.append)
        for _ in range(3):
            watch.see(*reader.find([reader.question(row.text) for row in reader.passages.rows]))
        assert len(said) == wanted, (watch.share, watch.entropy)
        if deaf:
            assert watch.distinct == 2 and "200 questions got 2 of 80 passages (2.5% of" in said[0]


def test_watch_measures_entropy_and_share() -> None:
    watch = Watch(10, lambda text: None)
    watch.see(torch.tensor([[0, 1], [2, 1]]), torch.tensor([[3.0, 3.0], [50.0, -50.0]]))
    assert watch.distinct == 3 and watch.share == 3 / 4
    assert watch.entropy == pytest.approx(0.6931 / 2, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": None}, "set index to the folder"),
        ({"workers": 2}, "workers=2 prepare batches ahead"),
        ({"refresh": -1}, "refresh must be 0"),
        ({"parallel": "fsdp"}, "parallel=fsdp"),
        ({"overrides": {"passages": 9}}, "k is 9"),
    ],
)
def test_options_that_do_not_fit_are_named(
    place: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(**of(place, steps=2, out=tmp_path / "a", **change))
    assert not list((tmp_path / "a").glob("step-*"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "what is a cat?", "answer": ""}, "row 7: answer is ''"),
        ({"question": "what is a cat?", "answer": None}, "row 7: .answer. has no value"),
        ({"question": " ", "answer": "x"}, "row 7: question is ' '"),
        ({"question": "what is a cat? " * 30, "answer": "x"}, "row 7: the question has .* reads 64"),
    ],
)
def test_rows_that_do_not_fit_are_named(
    place: dict[str, Any], tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with open(place["data"], "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        finetune(**of(place, steps=2, out=tmp_path / "a"))


def test_passages_that_are_too_long_are_named_before_the_first_step(place: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing is cut. Index shorter passages"):
        finetune(**of(place, steps=2, out=tmp_path / "a", overrides={"longest": 12}))
    assert not list((tmp_path / "a").glob("step-*"))


def test_index_of_another_encoder_is_refused(place: dict[str, Any], tmp_path: Path) -> None:
    wide, _ = parts(dim=24)
    folder = tmp_path / "facts"
    folder.mkdir()
    (folder / "a.txt").write_text("a cat is a kind of animal.\n")
    index(folder, tmp_path / "wide", Encoder(wide, "wide"))
    with pytest.raises(ValueError, match=r"24 wide"):
        finetune(
            **of(
                place,
                model=place["frozen"],
                steps=2,
                index=str(tmp_path / "wide"),
                out=tmp_path / "a",
                overrides={"passages": 1},
            )
        )
