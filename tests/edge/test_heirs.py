"""Heirs of a teacher: its pieces, its layers, and the trial that decides whether one takes part."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.core import pages
from anyformer.data import vocabulary
from anyformer.edge import trial as trials
from anyformer.edge.design import LED, PARTS, Design
from anyformer.edge.finish import designed
from anyformer.edge.heirs import MARK, Heirs
from anyformer.edge.pieces import cut, cuttable, tokenizers
from anyformer.edge.space import Space, space
from anyformer.edge.wish import Wish
from anyformer.hub.text.tokenizer import Tokenizer

pytest.importorskip("optuna", reason="the search needs the extra anyformer[edge]")
SPACE: dict[str, list[Any]] = {
    "dim": [16], "depth": [1], "vocab": [64, 96], "pool": ["additive"], "bits": [8],
    "mixer": ["own"], "heads": [2], "kv_heads": [0], "hidden": [1],
}  # fmt: skip
WORDS = [a + b + c for a in "bdfgklmn" for b in "aeiou" for c in ("", "st", "rn", "ll")]


def sentences(count: int = 240) -> list[str]:
    noise = random.Random(0)
    return [" ".join(noise.choices(WORDS, range(len(WORDS), 0, -1), k=noise.randint(4, 12))) for _ in range(count)]


def teacher(page: str = "bert", **more: Any) -> Any:
    torch.manual_seed(0)
    tokenizer = vocabulary.make(sentences(), "wordpiece", 200)
    model = af.build(page, "tiny", vocab=tokenizer.vocab_size, seed=0, task="none", **more).eval()
    with torch.no_grad():
        for weight in model.parameters():  # as if it had been trained: no two columns weigh the same
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    model.tokenizer = tokenizer
    return model


def known(page: str = "bert", vocabs: tuple[int, ...] = (64, 200)) -> tuple[Any, Space]:
    base = pages.recipe(page, "tiny", task="classify", classes=1)
    return base, space(base, 16, {**SPACE, "vocab": vocabs})


def test_pieces_of_a_teacher_read_as_it_does_and_rarer_words_in_shorter_pieces(tmp_path: Path) -> None:
    own, texts = teacher().tokenizer, sentences()
    whole, small = (tokenizers(texts, (200, 80), tmp_path / "t.json", own)[size] for size in (200, 80))
    for text in texts[:20]:
        assert whole.core.encode(text).tokens == own.core.encode(text).tokens
        cut_up = small.core.encode(text)
        assert own.core.token_to_id("[UNK]") == 1 and "[UNK]" not in cut_up.tokens
        assert len(cut_up.tokens) >= len(own.core.encode(text).tokens) and max(cut_up.ids) < 80
        assert cut_up.tokens[0] == "[CLS]" and cut_up.tokens[-1] == "[SEP]"
    assert all(whole.core.token_to_id(t) == i for t, i in small.core.get_vocab().items())
    assert any(len(small.core.encode(t).ids) > len(whole.core.encode(t).ids) for t in texts)
    again = tokenizers(["other"], (80,), tmp_path / "t.json", own)[80]  # kept, not made again
    assert again.core.get_vocab() == small.core.get_vocab() and again.pad_id == small.pad_id


def test_ends_of_older_files_keep_their_tokens() -> None:
    own = teacher().tokenizer
    content = json.loads(own.core.to_str())
    content["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    older = Tokenizer(type(own.core).from_str(json.dumps(content)), own.roles)
    made = Tokenizer(type(own.core).from_str(json.dumps(cut(older, sentences(), 60))), own.roles)
    assert made.core.encode("bast").tokens[:: len(made.core.encode("bast").tokens) - 1] == ["[CLS]", "[SEP]"]
    assert cuttable(older) and not cuttable(Tokenizer.bytes_level())


@pytest.mark.parametrize("page", ["bert", "modernbert"])
def test_an_heir_with_all_columns_computes_what_the_teacher_does(page: str, tmp_path: Path) -> None:
    own = teacher(page)
    base, searched = known(page)
    heirs, depth = Heirs(own, base, searched), len(own.blocks)
    tokenizer = tokenizers(sentences(), (200,), tmp_path / "t.json", own.tokenizer)[200]
    weights = heirs.weights(tokenizer)
    first = heirs.choices()[0]
    text = "bast dell kurn"
    streams = []
    for model, reader in ((own, own.tokenizer), (heirs.standing(first, weights).eval(), tokenizer)):
        seen: list[torch.Tensor] = []
        hook = model.blocks[min(first["depth"], depth) - 1].register_forward_hook(
            lambda _, a, out, seen=seen: seen.append(out)
        )
        with torch.no_grad():
            model(input_ids=torch.tensor([reader.core.encode(text).ids]))
        hook.remove()
        streams.append(seen[0])
    ratio = dict(own.recipe.walk())["blocks.0.ffn.hidden"] / own.recipe["dim"]
    assert first["hidden.0"] <= ratio
    if first["hidden.0"] == ratio:
        assert torch.allclose(streams[0], streams[1], atol=1e-5)
    else:  # the columns that weigh least are missing: near, and not the same
        assert not torch.allclose(streams[0], streams[1], atol=1e-5)
    narrow = {**first, **{n: 1 for n in first if n.startswith("hidden")}}
    small = heirs.standing(narrow, weights)
    order = own.blocks[0].ffn.up.weight.norm(dim=1) * own.blocks[0].ffn.down.weight.norm(dim=0)
    if page == "bert":
        best = own.blocks[0].ffn.up.weight[order.argsort(descending=True)[: own.recipe["dim"]]]
        assert torch.equal(small.blocks[0].ffn.up.weight, best)


@pytest.mark.parametrize(
    ("page", "searched", "says"),
    [("gpt", "bert", "unlike the page"), ("bert", "bert", "no WordPiece")],
)
def test_a_teacher_without_heirs_is_named_with_its_reason(page: str, searched: str, says: str) -> None:
    own = af.build(page, "tiny", vocab=257, seed=0)
    own.tokenizer = Tokenizer.bytes_level()
    with pytest.raises(ValueError, match=says):
        Heirs(own, *known(searched))


@pytest.fixture
def wish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wish:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    rows = [{"text": text, "label": sum(word.endswith("st") for word in text.split())} for text in sentences(300)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Wish(
        str(tmp_path / "rows.jsonl"), "pearson", 300_000, 5.0, hours=6 / 3600, tokens=16, of="tiny", values=SPACE,
        trials=2, teacher="t",
    )  # fmt: skip


@pytest.mark.parametrize("ahead", [True, False])
def test_the_trial_decides_and_what_was_learned_goes_on(
    ahead: bool, wish: Wish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trials.learned

    def turned(design: Any, model: Any, choice: Any, *rest: Any) -> float:
        return real(design, model, choice, *rest) * 0 + float((MARK in choice) == ahead)

    monkeypatch.setattr(trials, "learned", turned)
    monkeypatch.setattr(trials, "STEPS", 0)
    one = Design(wish, tmp_path / "out", teacher(), say=lambda _: None)
    weights = one._prepared()
    assert one.parts == (LED if ahead else PARTS) and one.left < one.seconds
    assert len(one.tried["heirs"]) == 1 and len(one.tried["models"]) == 2
    spent = one.left
    assert one._prepared() is not weights and one.left == spent  # read again, not learned again
    point = one._run_best(weights)[0]
    assert MARK in point.choice and point.real_size == pytest.approx(point.size, rel=0.08)


def test_a_design_whose_heir_leads_is_one_and_its_file_is_checked(
    wish: Wish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anyformer.edge import finish

    monkeypatch.setattr(trials, "STEPS", 0)
    real = trials.learned
    for place in (trials, finish):
        monkeypatch.setattr(place, "learned", lambda d, m, c, *rest: real(d, m, c, *rest) + 10.0 * (MARK in c))
    out = tmp_path / "out"
    report = designed(replace(wish, coverage=0.5), out, teacher(), say=lambda _: None)
    assert report["chosen"]["choice"][MARK] == 2 and report["difference"] < 1e-4
    assert sum(f.stat().st_size for f in (out / "model").iterdir()) <= wish.size
    made = af.load(out / "trained")
    assert made.recipe["dim"] == teacher().recipe["dim"] and made.tokenizer.core.token_to_id("[CLS]") is not None


def test_an_heir_without_time_for_its_first_steps_is_left_out_and_costs_none(
    wish: Wish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(trials, "STEPS", 10**6)
    one = Design(wish, tmp_path / "out", teacher(), say=said.append)
    one._prepared()
    left = one.left
    monkeypatch.setattr(trials, "STEPS", 0)  # a second call does not decide again
    one._prepared()
    assert one.tried == {} and one.parts == PARTS and one.left == left
    assert sum(line.startswith("no heir of the teacher: 1000000 steps of it take") for line in said) == 1
