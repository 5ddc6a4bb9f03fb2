"""Roles of heads: exact on maps made by hand, on every page, and true of a trained model's induction head."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import anyformer as af
from anyformer.core import pages
from anyformer.explain.blocks import Weights
from anyformer.explain.roles import WHAT, _Rows, _scored, roles, without
from anyformer.explain.subjects import NOUNS, agreeing
from anyformer.hub.text.tokenizer import Tokenizer
from tests.later import later

WORDS, LENGTH = 40, 40
roles_module: Any = importlib.import_module("anyformer.explain.roles")  # the package has a function of that name


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def _map(read: Any, length: int = 12) -> Tensor:
    """Weights of one head that reads one place of each position: (1, 1, 1, T, T)."""
    w = torch.zeros(length, length)
    for t in range(length):
        w[t, read(t)] = 1.0
    return w[None, None, None]


@pytest.mark.parametrize(
    ("role", "read", "again"),
    [
        ("previous", lambda t: max(t - 1, 0), False),
        ("first", lambda t: 0, False),
        ("offset", lambda t: max(t - 3, 0), False),
        ("next", lambda t: min(t + 1, 11), False),
        ("delimiter", lambda t: 4 if t > 4 else 0, False),
        ("duplicate", lambda t: t - 6 if t >= 6 else 0, True),
        ("induction", lambda t: t - 5 if t >= 6 else 0, True),
    ],
)
def test_a_perfect_head_has_the_score_1(role, read, again, monkeypatch):
    ids = torch.arange(6).repeat(2)[None]
    marks = torch.zeros(1, 12, dtype=torch.bool)
    marks[0, 4] = True
    model: Any = SimpleNamespace(tokenizer=None)
    monkeypatch.setattr(roles_module, "_delimiters", lambda model, ids: marks)
    call: Any = None
    scores, offset = _scored([Weights.of(_map(read)[0])], _Rows("twice" if again else "text", call, ids), model)
    best = max(scores, key=lambda name: float(scores[name]))
    assert best == role and float(scores[role]) > (0.6 if role == "delimiter" else 0.7)
    if role == "offset":
        assert int(offset) == 3
    if role in ("duplicate", "induction", "first", "next"):
        assert float(scores[role]) == 1.0


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "gpt", "bert", "t5", "vit", "gemma3", "mixtral"),
        *later(*(n for n in pages.names() if n not in ("llama", "gpt", "bert", "t5", "vit", "gemma3", "mixtral"))),
    ],
)
def test_every_page_has_roles_or_says_why(name):
    model = af.build(name, "tiny", seed=0).eval()
    call = model.complete(model.example(1, {}, torch.Generator().manual_seed(0)))
    before = {n: p.clone() for n, p in model.named_parameters()}
    try:
        made = roles(model, call)
    except ValueError as error:
        assert any(w in str(error) for w in ("no self-attention", "windows or blocks", "at least 4 positions")), error
        assert name not in ("llama", "gpt", "bert", "t5", "vit", "gemma3", "mixtral")
        return
    assert made.found and set(made.scores) <= set(WHAT)
    for h in made.found:
        assert 0 <= h.score <= 1.001 and h.effect == h.effect and h.path in made.layers
        assert h.score == pytest.approx(float(made.scores[h.role][made.layers.index(h.path), h.head]))
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert not any(m._forward_pre_hooks for m in model.modules()) and model.taps is None


def test_the_places_of_subjects_and_verbs_are_those_of_the_words():
    """By bytes and by words, the tokens that are marked spell a noun and begin a verb; distances and places differ."""
    text = " ".join(agreeing(Tokenizer.bytes_level()).texts)  # type: ignore[union-attr]
    for tokenizer in (Tokenizer.bytes_level(), Tokenizer.train_bpe([text], 400)):
        made = agreeing(tokenizer, longest=100)
        assert made is not None and len(made.ids) >= 8 and made.ids.shape == made.subject.shape
        for ids, verb, there, said in zip(made.ids.tolist(), made.verb.tolist(), made.subject, made.texts, strict=True):
            noun = tokenizer.decode([i for i, yes in zip(ids, there.tolist(), strict=True) if yes]).strip()
            does = tokenizer.decode(ids[verb:]).split()[0]
            assert f"{noun} " in said and noun.rstrip("s") in NOUNS and does in ("is", "are", "was", "were")
            assert (does in ("are", "were")) == noun.endswith("s")
            assert max(there.nonzero()) < verb
        apart = made.verb - made.subject.float().argmax(1)
        assert len(set(apart.tolist())) > 2 and len(set(made.subject.float().argmax(1).tolist())) > 2
    assert agreeing(tokenizer, longest=5) is None


@pytest.mark.parametrize(("name", "before"), [("llama", 1), ("bert", 0)])
def test_a_head_that_reads_the_subject_has_the_score_1(name, before, monkeypatch):
    """A planted map: from the verb, or from what writes it, to the subject, and by chance from anywhere else."""
    model = af.build(name, "tiny", vocab=257, context=100, depth=1, seed=0).eval()
    model.tokenizer = Tokenizer.bytes_level()
    made = agreeing(model.tokenizer, 0, 100)
    assert made is not None
    plain = roles_module._weights

    def planted(call, layers):
        weights = plain(call, layers)
        if call.model is model and call.inputs["input_ids"].shape == made.ids.shape:
            rows, whole = torch.arange(len(made.ids)), weights[0].pooled(1)
            whole[rows, 2, made.verb - before] = made.subject / made.subject.sum(1, keepdim=True)
            weights = [Weights.of(whole)]
        return weights

    monkeypatch.setattr(roles_module, "_weights", planted)
    found = [h for h in roles(model, "some text to read").found if h.role == "subject"]
    assert found[0].head == 2 and found[0].score == pytest.approx(1.0) and found[1].score < 0.5
    assert found[0].untrained < 0.5 and found[0].effect != 0


def _twice(rows: int, draws: torch.Generator) -> Tensor:
    """Rows of random tokens that come again after 6 to 20 of them: no fixed distance tells what follows."""
    made = []
    for _ in range(rows):
        period = int(torch.randint(6, LENGTH // 2 + 1, (), generator=draws))
        made.append(torch.randint(WORDS, (period,), generator=draws).repeat(LENGTH // period + 1)[:LENGTH])
    return torch.stack(made)


@pytest.mark.slow
def test_the_induction_head_of_a_trained_model_is_found_and_needed():
    """Two layers learn to copy what followed; 17 s. One head of the second layer does it, and nothing works without
    it; of the first layer two heads read the position before, and the other two can go."""
    recipe = pages.recipe("llama", "tiny", dim=48, depth=2, heads=4, kv_heads=4, vocab=WORDS, hidden=96)
    one = {"blocks.1.mixer.heads": 1, "blocks.1.mixer.kv_heads": 1, "blocks.1.mixer.head_dim": 16}
    model: Any = af.build(recipe.but(one), seed=0)
    steps, rate, draws = 700, 8e-3, torch.Generator().manual_seed(0)
    learns = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(steps):
        for group in learns.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 30) * (1 - step / steps)
        ids = _twice(32, draws)
        loss = F.cross_entropy(
            model(ids).logits[:, LENGTH // 2 - 1 : -1].flatten(0, 1), ids[:, LENGTH // 2 :].flatten()
        )
        loss.backward()
        learns.step()
        learns.zero_grad()
    model.eval()
    ids = _twice(64, draws)

    @torch.no_grad()
    def right(*heads: tuple[str, int]) -> float:
        with without(model, heads):
            guess = model(ids).logits[:, LENGTH // 2 - 1 : -1].argmax(-1)
        return float((guess == ids[:, LENGTH // 2 :]).float().mean())

    made = roles(model, ids[:4])
    first = {role: next(h for h in made.found if h.role == role) for role in ("induction", "previous")}
    found = first["induction"]
    assert found.path == "blocks.1.mixer" and found.score > 0.4 and found.untrained < 0.1 and found.effect > 1
    assert first["previous"].path == "blocks.0.mixer" and first["previous"].score > 0.4
    whole = right()
    assert whole > 0.85 and right((found.path, found.head)) < 0.1  # 1 of 40 by chance
    needed = {h.head for h in made.found if h.role == "previous" and h.score > 0.3 and h.path == "blocks.0.mixer"}
    idle = [h for h in range(4) if h not in needed]
    assert idle and all(whole - right(("blocks.0.mixer", h)) < 0.05 for h in idle)
    assert all(whole - right(("blocks.0.mixer", h)) > 0.2 for h in needed)


def test_bad_models_are_named():
    with pytest.raises(ValueError, match="no self-attention with weights"):
        roles(af.build("mamba", "tiny").eval(), [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="at least 4 positions, better hundreds; this text has 2"):
        roles(af.build("llama", "tiny").eval(), [1, 2])
