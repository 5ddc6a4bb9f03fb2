"""Transcribing: the grammar of times, windows, gates, languages, times of words."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

import anyformer as af
from anyformer.generate import transcribe
from anyformer.generate.rules import settings_of
from anyformer.generate.speech import CODES, SpeechRules, language_of, marks
from anyformer.generate.timing import grouped, median, path_times
from anyformer.generate.transcribing import Written, _Run
from anyformer.hub import generation
from anyformer.hub.processors import SoundProcessor
from anyformer.hub.text.tokenizer import Tokenizer

torch.set_num_threads(1)
FRAMES = 50  # positions of the encoder: one second
SPECIAL = ["endoftext", "startoftranscript", "en", "de", "yue", "translate", "transcribe", "startoflm", "startofprev"]
SPECIAL += ["nospeech", "notimestamps"]
END, START, ZERO = 256, 257, 256 + len(SPECIAL)
VOCAB = ZERO + FRAMES + 1
A, B = 65, 66  # tokens of text


def built() -> Any:
    """A model of random weights with a byte-level tokenizer and the marks of Whisper; a window is one second."""
    made = af.build("whisper", "tiny", mels=8, frames=FRAMES, vocab=VOCAB, context=64, begin_id=START, seed=0).eval()
    letters = sorted(ByteLevel.alphabet())
    core = Core(BPE({c: i for i, c in enumerate(letters)}, []))
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), Decoder()
    core.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False, special=True) for name in SPECIAL])
    made.tokenizer, made.processor = Tokenizer(core), SoundProcessor(mels=8, window=1)
    made.origin = {"config": {}, "generation": {"is_multilingual": True}}
    return made


@pytest.fixture
def model() -> Any:
    return built()


def noise(seconds: float, seed: int = 0) -> tuple[np.ndarray, int]:
    size = int(seconds * 16000)
    return (np.random.default_rng(seed).standard_normal(size) * 0.1).astype(np.float32), 16000


# ---------------------------------------------------------------------------------------- marks, languages


def test_marks_are_found_by_their_names(model: Any) -> None:
    known = marks(model, settings_of(model))
    assert (known.end, known.start, known.zero) == (END, START, ZERO)
    assert known.languages == {"en": 258, "de": 259, "yue": 260}
    assert known.tasks == {"translate": 261, "transcribe": 262}
    assert set(known.hidden) == {START, *range(258, 264), known.previous, known.silence}


def test_a_model_of_one_language_has_no_marks_of_languages(model: Any) -> None:
    model.origin["generation"]["is_multilingual"] = False
    known = marks(model, settings_of(model))
    assert not known.languages and not known.tasks and set(range(258, 263)) <= {START, *known.hidden, 258, 259, 260}
    assert language_of(known, None, {}) is None and language_of(known, "English", {}) is None
    with pytest.raises(ValueError, match="language is 'de', and this model knows English only"):
        transcribe(model, noise(0.5), language="de")
    with pytest.raises(ValueError, match="task is 'translate'; known are transcribe; this model knows English only"):
        transcribe(model, noise(0.5), task="translate")


@pytest.mark.parametrize(
    ("asked", "files", "expected"),
    [
        ("de", {}, "de"), ("German", {}, "de"), ("<|yue|>", {}, "yue"), ("cantonese", {"language": "german"}, "yue"),
        (None, {"language": "german"}, "de"), (None, {"forced_decoder_ids": [[1, 259], [2, 262]]}, "de"),
        (None, {"forced_decoder_ids": [[1, None], [2, 262]]}, None), (None, {"forced_decoder_ids": None}, None),
        (None, {}, None),
    ],
)  # fmt: skip
def test_a_language_is_the_callers_or_the_files(model: Any, asked: Any, files: Any, expected: Any) -> None:
    assert language_of(marks(model, settings_of(model)), asked, files) == expected


def test_the_names_of_languages_are_those_of_the_oracle() -> None:
    table = pytest.importorskip("transformers.models.whisper.tokenization_whisper").LANGUAGES
    assert set(CODES.values()) == set(table)
    assert {code: name for name, code in CODES.items()} | {"ht": "haitian creole"} == table


# ------------------------------------------------------------------------------------------- the grammar


def obeyed(tokens: list[int], first: int) -> None:
    """Fails unless the tokens of a window, without their end, follow the grammar of times."""
    times = [t for t in tokens if t >= ZERO]
    assert tokens[0] >= ZERO and tokens[0] <= ZERO + first and times == sorted(times)
    for i in range(1, len(tokens)):
        before = i < 2 or tokens[i - 2] >= ZERO
        if tokens[i - 1] >= ZERO and before:
            assert tokens[i] < ZERO, "a third time in a row, or a second one at the beginning"
    runs = [list(run) for timed, run in itertools.groupby(tokens, lambda t: t >= ZERO) if timed]
    assert all(len(run) <= 2 for run in runs)


@pytest.mark.parametrize("seed", range(20))
def test_any_scores_give_a_text_that_follows_the_grammar(model: Any, seed: int) -> None:
    settings = {"is_multilingual": True, "suppress_tokens": [5, 6], "max_initial_timestamp_index": 7}
    known = marks(model, settings)
    rules, draw = SpeechRules(known, settings, VOCAB, FRAMES, times=True), torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    for _ in range(60):
        scores = torch.randn(VOCAB, generator=draw) * 3
        scores[known.hidden[0]] = 50.0  # what is never written is likeliest
        scores[5] = 40.0
        logs = rules.apply(scores, tokens)
        assert abs(float(logs.exp().sum()) - 1) < 1e-5
        token = int(torch.multinomial(logs.softmax(-1), 1, generator=draw))
        if token == END:
            break
        tokens.append(token)
    obeyed(tokens, 7)
    assert not {5, 6, *known.hidden, known.untimed} & set(tokens)


@pytest.mark.parametrize("times", [True, False])
def test_the_rules_are_the_oracles(model: Any, times: bool) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    settings = {"is_multilingual": True, "suppress_tokens": [5, 6], "begin_suppress_tokens": [32, END]}
    known, rng = marks(model, settings), random.Random(0)
    rules = SpeechRules(known, settings, VOCAB, FRAMES, times)
    config = type("Config", (), {"no_timestamps_token_id": known.untimed, "eos_token_id": END, "bos_token_id": END,
                                 "max_initial_timestamp_index": 50})()  # fmt: skip
    steps = [
        process.SuppressTokensLogitsProcessor([5, 6, *known.hidden]),
        process.SuppressTokensAtBeginLogitsProcessor([32, END], 1),
    ]
    steps += [process.WhisperTimeStampLogitsProcessor(config, begin_index=1)] if times else []
    for trial in range(200):
        tokens: list[int] = []
        for _ in range(rng.randint(0, 6)):
            tokens.append(rng.choice((rng.randrange(256), ZERO + rng.randrange(FRAMES))))
        scores = torch.randn(VOCAB, generator=torch.Generator().manual_seed(trial)) * 2
        scores[ZERO:] += rng.choice((-20.0, 0.0, 3.0)) if times else -50.0
        expected = scores[None].clone()
        for step in steps:
            expected = step(torch.tensor([[START, *tokens]]), expected)
        if not bool(expected.isfinite().any()):
            continue
        found, wanted = rules.apply(scores, tokens), expected[0].log_softmax(-1)
        seen = wanted.isfinite() if times else torch.arange(VOCAB) < ZERO  # ours writes no times without times
        torch.testing.assert_close(found.exp()[seen], wanted.exp()[seen], rtol=1e-5, atol=1e-6)
        assert float(found.exp()[~seen].sum()) == 0.0


@pytest.mark.parametrize("key", ["suppress_tokens", "begin_suppress_tokens"])
def test_senseless_rules_of_a_file_are_refused(model: Any, key: str) -> None:
    model.origin["generation"][key] = ["a"]
    with pytest.raises(ValueError, match=rf"key '{key}' is \['a'\]; it must be a list of token ids"):
        transcribe(model, noise(0.5))


@pytest.mark.parametrize(("key", "value"), [("no_repeat_ngram_size", 3), ("guidance_scale", 2.0), ("min_length", 5)])
def test_rules_that_transcribe_cannot_obey_are_refused(model: Any, key: str, value: Any) -> None:
    model.origin["generation"][key] = value
    with pytest.raises(ValueError, match=rf"the model's files set {key}={value}, which transcribe cannot do"):
        transcribe(model, noise(0.5))


def test_tokens_behind_the_times_are_never_written(model: Any) -> None:
    settings = settings_of(model)
    rules = SpeechRules(marks(model, settings), settings, VOCAB + 3, FRAMES, times=True)
    scores = torch.zeros(VOCAB + 3)
    scores[VOCAB:] = 30.0
    for tokens in ([], [ZERO], [ZERO, A], [ZERO, A, ZERO + FRAMES]):
        assert float(rules.apply(scores, tokens)[VOCAB:].exp().sum()) == 0.0


def test_an_opening_in_the_files_of_speech_is_no_refusal() -> None:
    speech = {"forced_decoder_ids": [[1, 259], [2, 262]], "no_timestamps_token_id": 266}
    lines = {line.key: line for line in generation.account("generation_config.json", speech)}
    assert lines["forced_decoder_ids"].status == "ignored" and "transcribe" in lines["forced_decoder_ids"].detail
    text = {
        line.key: line.status for line in generation.account("generation_config.json", {"forced_decoder_ids": [[1, 2]]})
    }
    assert text == {"forced_decoder_ids": "refused"}


# --------------------------------------------------------------------------------------- windows, gates


def t(hundredths: int) -> int:
    """The token of a time, in hundredths of a second."""
    return ZERO + hundredths // 2


PARTS: list[tuple[list[int], list[tuple[float, float, list[int]]], int]] = [
    ([t(0), A, t(20), t(20), B, t(60)], [(0.0, 0.2, [A]), (0.2, 0.6, [B])], 100),  # closed: the rest is silent
    ([t(0), A, t(20), t(20), B, t(60), t(60)], [(0.0, 0.2, [A]), (0.2, 0.6, [B])], 60),  # begun: read again from there
    ([t(0), A, t(20), t(20), B], [(0.0, 0.2, [A])], 20),  # a text that is not finished is read again
    ([t(10), A, B, t(80)], [(0.0, 0.8, [A, B])], 100),
    ([t(0), A, B], [(0.0, 1.0, [A, B])], 100),
    ([], [(0.0, 1.0, [])], 100),
]  # fmt: skip


@pytest.mark.parametrize(("tokens", "expected", "moved"), PARTS, ids=range(len(PARTS)))
def test_a_window_is_parted_at_its_times_and_moved_to_the_last(
    model: Any, tokens: list[int], expected: Any, moved: int
) -> None:
    run = _Run(model, "en", None, True, (0.0,), 0)
    segments, frames = run.parted(Written(tokens, -0.5, 0.0, 0.0, 1.0), 300, 100)
    assert frames == moved
    found = [(round(s.start - 3, 6), round(s.end - 3, 6), [x for x in s.tokens if x < END]) for s in segments]
    assert found == expected


@pytest.mark.parametrize(
    ("log_probability", "silence", "repeated", "quiet", "refused"),
    [(-0.5, 0.1, 1.0, False, False), (-1.5, 0.1, 1.0, False, True), (-0.5, 0.1, 2.5, False, True),
     (-1.5, 0.7, 1.0, True, False), (-0.5, 0.9, 1.0, False, False), (-1.5, 0.7, 9.0, True, False)],
)  # fmt: skip
def test_gates(log_probability: float, silence: float, repeated: float, quiet: bool, refused: bool) -> None:
    found = Written([A], log_probability, silence, 0.0, repeated)
    assert (found.quiet, found.refused) == (quiet, refused)


def test_a_text_is_drawn_again_while_it_is_refused(model: Any) -> None:
    """Random weights write unlikely text: the last temperature is taken, and the same seed gives the same text."""
    heard = [transcribe(model, noise(1), language="en", temperatures=(0.0, 0.7), seed=seed) for seed in (1, 1, 2)]
    assert {s.temperature for one in heard for s in one.segments} == {0.7}
    assert heard[0] == heard[1] != heard[2]
    assert {s.temperature for s in transcribe(model, noise(1), language="en", temperatures=(0.0,)).segments} == {0.0}


@pytest.mark.parametrize("samples", [np.zeros(40000), np.full(40000, 5e-5), np.zeros(1)])
def test_nothing_is_heard_in_silence(model: Any, samples: np.ndarray) -> None:
    calls: list[Any] = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    found = transcribe(model, (samples, 16000))
    assert (found.text, found.segments, found.language) == ("", (), None) and not calls


def test_windows_after_silence_have_absolute_times(model: Any) -> None:
    samples = np.concatenate((np.zeros(3 * 16000, np.float32), noise(0.9)[0]))
    found = transcribe(model, (samples, 16000), language="en", temperatures=(0.0,))
    assert found.segments and all(3.0 <= s.start < s.end <= 4.0 + 1e-6 for s in found.segments)


@pytest.mark.slow
def test_an_hour_is_read_to_its_end(model: Any) -> None:
    samples = np.concatenate((np.zeros(3599 * 16000, np.float32), noise(0.9)[0]))
    found = transcribe(model, (samples, 16000), language="en", temperatures=(0.0,))
    assert found.segments and all(3599.0 <= s.start < s.end <= 3600.0 + 1e-6 for s in found.segments)


def test_every_sound_comes_to_its_end(model: Any) -> None:
    """Whatever a model writes, windows move on; a hundred windows of random text end."""
    for seed in range(3):
        found = transcribe(model, noise(12.3, seed), language="de", temperatures=(1.0,), seed=seed)
        starts = [s.start for s in found.segments]
        assert starts == sorted(starts) and all(s.end <= 12.3 + 1 for s in found.segments)


def test_the_opening_has_the_marks_and_the_end_of_the_text_before(model: Any) -> None:
    m = marks(model, settings_of(model))
    run = _Run(model, "de", "translate", True, (0.0,), 0)
    own = [START, m.languages["de"], m.tasks["translate"]]
    assert run._opening([]) == own
    long = run._opening(list(range(100)))
    assert long[0] == m.previous and long[-3:] == own and len(long) == model.context // 2
    assert long[1:-3] == list(range(100))[-len(long[1:-3]) :]
    assert _Run(model, "de", None, False, (0.0,), 0)._opening([])[-1] == m.untimed


def test_a_prompt_changes_the_text_and_is_not_part_of_it(model: Any) -> None:
    plain, led = (transcribe(model, noise(1), language="en", temperatures=(0.0,), prompt=p) for p in ("", "Dashwood"))
    assert plain.segments[0].tokens != led.segments[0].tokens and "Dashwood" not in led.text


def test_the_language_is_the_likeliest(model: Any) -> None:
    found = transcribe(model, noise(1), temperatures=(0.0,))
    features = model.processor(noise(1))
    with torch.no_grad():
        scores = model(**features, decoder_input_ids=torch.tensor([[START]])).logits[0, -1]
    assert found.language == ("en", "de", "yue")[int(scores[258:261].argmax())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "xx"}, "language is 'xx'.*; known are en, de, yue"),
        ({"language": "frensh"}, "did you mean french"),
        ({"task": "sing"}, "task is 'sing'; known are"),
        ({"notes": 1.5}, "notes must be a probability, from 0 to 1; got 1.5"),
        ({"temperatures": ()}, "temperatures must be numbers from 0 to 2, at least one"),
        ({"temperatures": (0, -1)}, "temperatures must be numbers from 0 to 2"),
        ({"timestamps": False}, "the sound has 1.5 seconds; with timestamps=False at most 1 are written"),
        ({"words": True, "timestamps": False}, "with timestamps=False|words=True needs timestamps"),
    ],
)  # fmt: skip
def test_senseless_options_are_refused_by_name(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transcribe(model, noise(1.5), **options)


def test_models_that_cannot_are_refused(model: Any) -> None:
    for name in ("gpt", "bart", "clip"):
        with pytest.raises(ValueError, match=f"{name} reads .*, and no sound"):
            transcribe(af.build(name, "tiny", seed=0), noise(0.5))
    model.processor = SoundProcessor(mels=9, window=1)
    with pytest.raises(ValueError, match="reads 8 mels in 100 frames, and its processor makes others"):
        transcribe(model, noise(0.5))
    model.processor = None
    assert transcribe(model, (np.zeros(100), 16000)).text == ""  # the published processor is assumed
    model.tokenizer = None
    with pytest.raises(ValueError, match="sounds need a tokenizer"):
        transcribe(model, noise(0.5))
    model.tokenizer = Tokenizer.train_bpe(["some other text"], 280)
    with pytest.raises(ValueError, match=r"the tokenizer has no token <\|startoftranscript\|> of this model"):
        transcribe(model, noise(0.5))


# ----------------------------------------------------------------------------------------- times of words


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (3, 5), (5, 3), (4, 6)])
def test_the_path_has_the_most_weight_of_all(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(sum(shape)).standard_normal(shape)
    rows, columns = shape

    def best(i: int, j: int) -> tuple[float, list[tuple[int, int]]]:
        if (i, j) == (0, 0):
            return weight[0, 0], [(0, 0)]
        before = [best(a, b) for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
        total, path = max(before, key=lambda found: found[0])
        return total + weight[i, j], [*path, (i, j)]

    _, path = best(rows - 1, columns - 1)
    assert path_times(weight) == [min(j for i, j in path if i == row) for row in range(rows)]


def test_the_median_is_that_of_seven_neighbours() -> None:
    x = torch.randn(2, 3, 11)
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (3, 3)), mode="reflect")
    expected = np.stack([np.median(wide[..., i : i + 7], -1) for i in range(11)], -1)
    torch.testing.assert_close(median(x), torch.from_numpy(expected), rtol=0, atol=0)
    assert torch.equal(median(x[..., :3]), x[..., :3])


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        (" Had he, then?", "en", [" Had", " he,", " then?"]),
        (" naïve café — no", "fr", [" naïve", " café —", " no"]),
        ("東京。", "ja", ["東", "京。"]),
        ("Yes", "en", ["Yes"]),
        ("", "en", []),
    ],
)  # fmt: skip
def test_words_are_all_of_the_text(model: Any, text: str, language: str, expected: list[str]) -> None:
    ids = model.tokenizer.encode(text, special=False)
    found = grouped(model.tokenizer, ids, language)
    assert [word for word, _ in found] == expected and sum(count for _, count in found) == len(ids)


@pytest.mark.parametrize("heads", [None, [[1, 0], [2, 3]]])
def test_words_have_times_inside_their_segment(model: Any, heads: Any) -> None:
    model.origin["generation"]["alignment_heads"] = heads
    found = transcribe(model, noise(2.5), language="en", temperatures=(0.0,), words=True)
    assert found.segments
    for segment in found.segments:
        assert "".join(word.text for word in segment.words) == segment.text
        edges = [e for word in segment.words for e in (word.start, word.end)]
        assert edges == sorted(edges) and segment.start <= edges[0] and edges[-1] <= segment.end


def test_heads_that_are_not_there_are_refused(model: Any) -> None:
    model.origin["generation"]["alignment_heads"] = [[3, 0]]
    with pytest.raises(ValueError, match=r"alignment_heads names \[3, 0\]; the model has 3 layers of 4 heads"):
        transcribe(model, noise(1), language="en", temperatures=(0.0,), words=True)
