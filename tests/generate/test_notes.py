"""Notes of a speech model on what is no speech: where they are written, and what is left of a text without them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from anyformer.generate import transcribe
from anyformer.generate.rules import settings_of
from anyformer.generate.speech import SpeechRules, marks
from tests.generate.test_transcribing import END, FRAMES, START, VOCAB, A, B, built, noise, t

torch.set_num_threads(1)


@pytest.fixture
def model() -> Any:
    """The model of random weights; its files keep brackets, the first byte of a music sign, and "/" out of the text."""
    made = built()
    made.origin["generation"]["suppress_tokens"] = sorted({ids(made, c)[0] for c in ("(", ")", "[", "]", "♪", "/")})
    return made


def ids(model: Any, text: str) -> list[int]:
    found: list[int] = model.tokenizer.encode(text, special=False)
    return found


def rules_of(model: Any, noted: float, times: bool = True) -> SpeechRules:
    settings = settings_of(model)
    return SpeechRules(marks(model, settings), settings, VOCAB, FRAMES, times, noted)


def scores(likely: dict[int, float]) -> torch.Tensor:
    """The logarithms of the probabilities, and next to nothing for the others."""
    made = torch.full((VOCAB,), -30.0)
    for token, probability in likely.items():
        made[token] = float(np.log(probability))
    return made


def scripted(model: Any, steps: list[dict[int, float]]) -> list[int]:
    """The model, which says these probabilities in each window, one after another; the list counts the openings."""
    at, openings = [0], [0]

    def says(module: Any, args: Any, given: dict[str, Any], out: Any) -> Any:
        begins = START in given["decoder_input_ids"][0].tolist()
        openings[0] += begins
        at[0] = 0 if begins else at[0] + 1
        logits = scores(steps[min(at[0], len(steps) - 1)]).expand(out.logits.shape)
        return dataclasses.replace(out, logits=logits)

    model.register_forward_hook(says, with_kwargs=True)
    return openings


def test_what_opens_a_note_is_what_the_files_keep_out_of_the_text(model: Any) -> None:
    opens = {ids(model, "[")[0]: "]", ids(model, "(")[0]: ")", ids(model, "♪")[0]: ""}
    assert len(ids(model, "♪")) == 3 and marks(model, settings_of(model)).notes == opens
    model.origin["generation"]["suppress_tokens"] = ids(model, "(/")
    assert marks(model, settings_of(model)).notes == {ids(model, "(")[0]: ")"}
    del model.origin["generation"]["suppress_tokens"]
    assert marks(model, settings_of(model)).notes == {}


def test_a_text_is_a_note_where_its_openers_are_likely_together(model: Any) -> None:
    (square, _), (bracket, close) = ids(model, "[]"), ids(model, "()")
    rules, said = rules_of(model, 0.2), scores({square: 0.12, bracket: 0.13, A: 0.7, END: 0.05})
    for written in ([t(0)], [t(0), A, t(20), t(20)]):  # a text begins
        logs = rules.apply(said, written)
        torch.testing.assert_close(logs[[square, bracket]].exp(), torch.tensor([0.48, 0.52]))
        assert int(logs.isfinite().sum()) == 3  # of the sign for music, next to nothing
    for written in ([t(0), A], [t(0), A, t(20)], [t(0), A, t(20), t(20), B]):  # it goes on, or has ended
        assert int(rules.apply(said, written).argmax()) in (A, END)
    unlikely = scores({square: 0.09, bracket: 0.1, A: 0.8})
    assert int(rules.apply(unlikely, [t(0)]).argmax()) == A and rules.apply(unlikely, [t(0)])[square] == -torch.inf
    inside = rules.apply(scores({close: 0.6, A: 0.3}), [t(0), bracket, B])
    assert int(inside.argmax()) == close
    inside = rules.apply(scores({rules.marks.silence: 0.6, A: 0.3}), [t(0), bracket, B])
    assert int(inside.argmax()) == A  # marks are never written
    assert rules.apply(scores({close: 0.6, A: 0.3}), [t(0), bracket, B, close, t(20), t(20), A])[close] == -torch.inf


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("noted", [0.2, 1.0])
def test_without_notes_the_rules_are_those_of_the_text(model: Any, times: bool, noted: float) -> None:
    """At 1, whatever is likely; at 0.2, where what opens a note is unlikely."""
    rules, draw = rules_of(model, noted, times), torch.Generator().manual_seed(0)
    plain = rules_of(model, 1.0, times)
    plain.openers = plain.openers[:0]
    for written in ([], [t(0)], [t(0), A], [t(0), A, t(20)], [t(0), A, t(20), t(20)]):
        said = torch.randn(VOCAB, generator=draw)
        said[rules.openers] += 20.0 if noted == 1.0 else -9.0
        part = [x for x in written if times or x < END]
        torch.testing.assert_close(rules.apply(said, part), plain.apply(said, part), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("[AB]", ""), ("(A)(B", ""), ("[A] BAB", " BAB"), ("♪ A/B ♪", " AB "), ("AB", "AB"), ("", ""),
        ("[A](B)A", "A"),
    ],
)  # fmt: skip
def test_a_text_without_its_notes(model: Any, text: str, left: str) -> None:
    rules, decoded = rules_of(model, 0.2), model.tokenizer.decode
    part = [t(0), *ids(model, text), t(20)]
    found = rules.spoken([*part, t(20), B, t(40)], decoded)
    assert (found[0], found[-4:]) == (t(0), [t(20), t(20), B, t(40)])
    kept = found[1:-4]
    assert not set(kept) & set(settings_of(model)["suppress_tokens"])
    assert decoded(kept).replace("�", "") == left


def test_a_note_is_not_shown_and_the_words_behind_it_are(model: Any) -> None:
    opener, close = ids(model, "[]")
    said = [{t(0): 0.9}, {opener: 0.3, A: 0.6}, {B: 0.9}, {close: 0.9}, {t(40): 0.9}, {t(40): 0.9}, {A: 0.9}, {B: 0.9},
            {t(80): 0.9}, {END: 0.9}]  # fmt: skip
    scripted(model, said)
    for task in ("transcribe", "translate"):
        for words in (False, True):
            found = transcribe(model, noise(1), language="de", task=task, words=words, temperatures=(0.0,))
            assert [(s.text, round(s.start, 2), round(s.end, 2)) for s in found.segments] == [
                (found.text, 0.4, 0.8)
            ] and found.text == model.tokenizer.decode([A, B])
            assert all(0.4 <= w.start <= w.end <= 0.8 for s in found.segments for w in s.words)
            assert "".join(w.text for s in found.segments for w in s.words) == (found.text if words else "")
    off = transcribe(model, noise(1), language="de", temperatures=(0.0,), notes=1.0)
    assert off.text.startswith(model.tokenizer.decode([A, B])) and off.segments[0].start == 0.0


def test_a_text_without_times_loses_its_notes_too(model: Any) -> None:
    opener, close = ids(model, "()")
    scripted(model, [{opener: 0.3, A: 0.6}, {B: 0.9}, {close: 0.9}, {A: 0.9}, {END: 0.9}])
    found = transcribe(model, noise(1), language="en", timestamps=False, temperatures=(0.0,))
    assert found.text == model.tokenizer.decode([A])


def test_notes_alone_are_no_text_are_not_drawn_again_and_have_no_language(model: Any) -> None:
    opener, close = ids(model, "()")
    said = [
        {t(0): 0.05, t(2): 0.04},
        {opener: 0.3, A: 0.6},
        {B: 0.02, A: 0.01},
        {close: 0.9},
        {t(100): 0.9},
        {END: 0.9},
    ]
    openings = scripted(model, said)
    found = transcribe(model, noise(2.5), language="en")
    assert (found.text, found.segments) == ("", ()) and openings == [3]  # of 2.5 windows
    openings[0] = 0
    assert transcribe(model, noise(1)).language is None
    assert openings == [2]  # for the language, and for the text
    model.origin["generation"]["language"] = "de"
    assert transcribe(model, noise(1)).language == "de"


def test_the_language_is_that_of_the_first_window_with_words(model: Any) -> None:
    """One second of notes in what seems English, then German."""
    opener, (german, english) = ids(model, "[")[0], (259, 258)
    windows = [0]

    def says(module: Any, args: Any, given: dict[str, Any], out: Any) -> Any:
        tokens = given["decoder_input_ids"][0].tolist()
        windows[0] += tokens == [START]
        music = windows[0] == 1
        step = {START: {english if music else german: 0.9}, opener: {t(100): 0.9}, A: {t(100): 0.9}, t(100): {END: 0.9},
                t(0): {opener if music else A: 0.9}}.get(tokens[-1], {t(0): 0.9})  # fmt: skip
        return dataclasses.replace(out, logits=scores(step).expand(out.logits.shape))

    model.register_forward_hook(says, with_kwargs=True)
    found = transcribe(model, noise(2), temperatures=(0.0,))
    assert found.language == "de" and windows == [2]
    assert [(s.text, s.start) for s in found.segments] == [(model.tokenizer.decode([A]), 1.0)]
