"""Beam search: against all texts one by one, against `transformers`, alone and in a batch."""

import itertools
import math
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.generate import generate
from anyformer.generate.beam import search
from anyformer.generate.options import Options
from anyformer.skeletons.encoder_decoder import EncoderDecoder
from tests.later import later

from .subjects import each_page, model, reading

torch.set_num_threads(1)

END = 3
PROMPTS = [[1, 2, 0], [4, 1, 2, 4, 4, 0, 1], [2]]
WIDE = 2000  # more beams than there are beginnings: nothing is ever dropped


def small(page: str, vocab: int = 5, **changes: Any) -> Any:
    """A page with a vocabulary so small that all texts can be tried; END ends a text."""
    more = {"begin_id": 0} if issubclass(af.recipe(page, "tiny").part, EncoderDecoder) else {}
    made = af.build(page, "tiny", vocab=vocab, **more, **changes)
    # where the norm comes last and the table is tied, large matrices drown what was read: one token for ever
    draw, std = torch.Generator().manual_seed(1), {"bart": 0.1, "transformer": 0.2}.get(page, 0.3)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim > 1 and "A_log" not in name:
                weight.normal_(std=1.0 if "positions" in name else std, generator=draw)
    made.origin = {"generation": {"eos_token_id": END}, "config": {}}
    return made.eval()


def options(count: int, beams: int, penalty: float = 1.0, early: Any = False, cache: bool = True) -> Options:
    return Options(count, 0.0, None, None, None, None, (), None, cache, beams, penalty, early)


@torch.no_grad()
def total(m: Any, prompt: list[int], tokens: list[int]) -> float:
    """The log-probability of a text, from one pass over all of it, without a state."""
    if isinstance(m, EncoderDecoder):
        ids = torch.tensor([[m.begin_id, *tokens]])
        logits = m(input_ids=torch.tensor([prompt]), decoder_input_ids=ids).logits[0]
    else:
        logits = m(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 :]
    return float(logits.log_softmax(-1)[range(len(tokens)), tokens].sum())


def every_text(vocab: int, count: int) -> list[list[int]]:
    """All texts of at most `count` tokens: they end with END, or are `count` long."""
    rest = [t for t in range(vocab) if t != END]
    ended = [[*t, END] for n in range(count) for t in itertools.product(rest, repeat=n)]
    return ended + [list(t) for t in itertools.product(rest, repeat=count)]


@torch.no_grad()
@pytest.mark.parametrize("penalty", [1.0, -1.0, *later(0.0, 2.5)])
@pytest.mark.parametrize("page", ["gpt", "t5", *later("llama", "mamba", "bart", "transformer")])
def test_with_enough_beams_it_is_the_best_of_all_texts(page, penalty):
    m = small(page)
    found = search(m, PROMPTS, options(4, WIDE, penalty, "never"))
    for prompt, best in zip(PROMPTS, found, strict=True):
        scores = {tuple(t): total(m, prompt, t) / len(t) ** penalty for t in every_text(5, 4)}
        expected = max(scores, key=scores.__getitem__)
        assert best.tokens == [t for t in expected if t != END]
        assert best.score == pytest.approx(scores[expected], abs=1e-5)
    assert len({round(best.score, 4) for best in found}) > 1  # and it depends on the prompt


@torch.no_grad()
@pytest.mark.parametrize("beams", [2, 3, 4])
def test_with_few_beams_it_is_the_definition(beams):
    """Step by step over plain lists, each score from the whole text."""
    m = small("bart", vocab=9)
    for prompt in PROMPTS:
        live: list[tuple[float, list[int]]] = [(0.0, [])]
        ended: list[tuple[float, list[int]]] = []
        for count in range(1, 7):
            texts = [[*tokens, t] for _, tokens in live for t in range(9)]
            ranked = sorted(((total(m, prompt, t), t) for t in texts), reverse=True)
            over = [(s, t) for s, t in ranked[:beams] if t[-1] == END or count == 6]
            ended = sorted([*ended, *((s / len(t), t) for s, t in over)], reverse=True)[:beams]
            live = [(s, t) for s, t in ranked if t[-1] != END][:beams]
        best = search(m, [prompt], options(6, beams, early="never"))[0]
        assert best.tokens == [t for t in ended[0][1] if t != END]
        assert best.score == pytest.approx(ended[0][0], abs=1e-5)


@pytest.mark.parametrize("name", each_page())
def test_a_row_gets_what_it_gets_alone_with_and_without_a_cache(name):
    m = model(name)
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12], [13]]
    by_length = any(getattr(getattr(part, "scaling", None), "by_length", False) for part in m.modules())
    rows = [[*row, *rows[1]] for row in rows] if by_length else rows  # on one side of the length that changes angles
    free = generate(m, rows, max_new_tokens=6, num_beams=3)
    m.origin = {"generation": {"eos_token_id": [free[0][2], free[1][4]]}, "config": {}}
    try:
        batch = generate(m, rows, max_new_tokens=6, num_beams=3)
        assert batch == [generate(m, row, max_new_tokens=6, num_beams=3) for row in rows]
        assert batch == generate(m, rows, max_new_tokens=6, num_beams=3, cache=False)
    finally:
        m.origin = None


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("page", ["gpt", "t5", "bart", "transformer"])
def test_it_is_the_search_of_transformers(page, early, tmp_path):
    """The same weights, several ends, several widths and penalties, sources and prompts of different lengths."""
    transformers = pytest.importorskip("transformers")
    m = small(page, vocab=23, **({} if page == "gpt" else {"decoder_depth": 2}))  # theirs fails where sides differ
    m.origin = None
    m.save(tmp_path)
    kind = transformers.AutoModelForCausalLM if page == "gpt" else transformers.AutoModelForSeq2SeqLM
    theirs = kind.from_pretrained(tmp_path).eval()
    ends = [END, 11]
    m.origin = {"generation": {"eos_token_id": ends}, "config": {}}
    prompts, seen = [[5, 6, 7], [8, 9, 10, 2, 12, 13, 14], [15]], set()
    theirs.generation_config = transformers.GenerationConfig(decoder_start_token_id=0, pad_token_id=22)
    for beams, penalty in itertools.product((2, 4), (0.0, 1.0, 2.0)):
        found = search(m, prompts, options(9, beams, penalty, early))
        for prompt, best in zip(prompts, found, strict=True):
            out = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=9, num_beams=beams,
                length_penalty=penalty, early_stopping=early, do_sample=False, eos_token_id=ends,
                return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
            ids = out.sequences[0, len(prompt) if page == "gpt" else 1 :].tolist()
            cut = next((i for i, t in enumerate(ids) if t in ends), len(ids))
            assert best.tokens == ids[:cut]
            assert math.isclose(best.score, float(out.sequences_scores[0]), abs_tol=1e-4)
            seen.add(tuple(ids[:cut]))
    assert len(seen) >= 3 and max(len(set(row)) for row in seen) > 1  # the test is of several texts


def test_one_beam_is_greedy_and_more_are_likelier():
    m, better = small("bart", vocab=23), 0
    for prompt in PROMPTS:
        greedy = generate(m, prompt, max_new_tokens=5)
        assert greedy == generate(m, prompt, max_new_tokens=5, num_beams=1)
        if END in greedy or len(greedy) < 5:
            continue
        m.origin = None
        found = generate(m, prompt, max_new_tokens=5, num_beams=50, length_penalty=0.0)
        m.origin = {"generation": {"eos_token_id": END}, "config": {}}
        better += total(m, prompt, found) >= total(m, prompt, generate(m, prompt, max_new_tokens=5)) - 1e-5
    assert better


def test_texts_and_stop_strings():
    m = reading()
    text = generate(m, "the cat", max_new_tokens=20, num_beams=3)
    several = generate(m, ["the cat", "東京"], max_new_tokens=20, num_beams=3)
    assert isinstance(text, str) and several[0] == text
    stop = text[len(text) // 2 :][:2]
    assert generate(m, "the cat", max_new_tokens=20, num_beams=3, stop=stop) == text[: text.index(stop)]


def test_nothing_is_asked_for_and_nothing_comes():
    assert generate(small("gpt"), [1, 2], max_new_tokens=0, num_beams=3) == []


def test_a_vocabulary_that_ends_at_once():
    m = small("gpt", vocab=2)
    m.origin = {"generation": {"eos_token_id": [0, 1]}, "config": {}}
    assert generate(m, [1, 0], max_new_tokens=5, num_beams=4) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 0}, "num_beams must be a whole number, 1 or more"),
        ({"num_beams": 4, "temperature": 0.5}, "leave out temperature=0.5"),
        ({"num_beams": 4, "top_k": 3, "top_p": 0.5}, "leave out top_p=0.5, top_k=3"),
        ({"length_penalty": 0.5}, "set num_beams"),
        ({"early_stopping": True}, "set num_beams"),
        ({"num_beams": 4, "early_stopping": "soon"}, "True, False or 'never'"),
        ({"num_beams": 4, "length_penalty": math.nan}, "length_penalty must be a number"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        generate(small("gpt"), [1], max_new_tokens=2, **given)


def test_scores_that_are_not_finite_are_an_error():
    m = small("gpt")
    with torch.no_grad():
        m.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        generate(m, [1], max_new_tokens=2, num_beams=2)
