"""Speech to text: `transcribe`. M mels, F frames of 10 ms, V vocabulary.

```
sound ── log-mels of all of it ── window of 30 s ── encoder ── text with times ──┬── segments
                                     ↑                                           │
                                     └── moved to the last time ── gates ────────┘
```
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.state import Memory
from anyformer.generate.decoding import evaluating
from anyformer.generate.paths import ctc_head
from anyformer.generate.rules import settings_of
from anyformer.generate.speech import TASKS, SpeechRules, language_of, marks
from anyformer.generate.spelling import Spelt, spell
from anyformer.generate.timing import Word, word_times
from anyformer.hub.processors import SoundProcessor, assumed
from anyformer.media.sound import sound

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # each is tried where the text before it was refused
REPEATED = 2.4  # the text shrinks to a smaller share under zlib: it repeats itself
UNLIKELY = -1.0  # the mean logarithm of the probability of a token
SILENT = 0.6  # the probability of the token for no speech
NOTED = 0.2  # the probability that a text is a note, "[Music]" or "(applause)"
WILD = 0.5  # a text that was drawn at a higher temperature is no prompt of the next window
FAINT = 1e-4  # no sample of a window is louder, about three steps of 16 bits: nothing is heard in it


@dataclass(frozen=True)
class Segment:
    """A part of a transcript, as the model wrote it between two times.

    Attributes:
        start, end: in seconds from the beginning of the sound.
        temperature: of the draws, 0 = the likeliest token each time.
        log_probability: mean over the tokens of its window. silence: probability that its window has no speech.
        words: with their times, if they were asked for.
    """

    text: str
    start: float
    end: float
    tokens: tuple[int, ...]
    temperature: float
    log_probability: float
    silence: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """The words of a sound.

    Attributes:
        language: its code; None for a model of one language, and where nothing is said.
        seconds: the length of the sound.
    """

    text: str
    language: str | None
    segments: tuple[Segment, ...]
    seconds: float


@dataclass(frozen=True)
class Written:
    """The tokens of one window, with their figures."""

    tokens: list[int]
    log_probability: float
    silence: float
    temperature: float
    repeated: float  # the length of the text over that of its compressed form
    wordless: bool = False  # there are notes in it, and nothing else

    @property
    def quiet(self) -> bool:
        """True if the window has no speech."""
        return self.silence > SILENT and self.log_probability < UNLIKELY

    @property
    def refused(self) -> bool:
        """True if the text repeats itself or is unlikely, and the window has speech."""
        unlikely = self.repeated > REPEATED or self.log_probability < UNLIKELY
        return unlikely and not self.quiet and not self.wordless


def transcribe(
    model: Any,
    audio: Any,
    *,
    language: str | None = None,
    task: str | None = None,
    timestamps: bool = True,
    words: bool = False,
    temperatures: Sequence[float] = TEMPERATURES,
    previous: bool = True,
    prompt: str = "",
    seed: int = 0,
    notes: float = NOTED,
    beams: int = 1,
    lm: Any = None,
    lm_weight: float = 0.5,
) -> Transcript:
    """Writes the words of a sound of any length, by Whisper or by a model with a CTC head (`generate.spelling`).

    Whisper reads 30 seconds at once. It writes times, and the next window begins at the last one, so that no word is
    cut; times are absolute. A text that repeats itself or is unlikely is drawn again at the next temperature. Windows
    without speech give nothing (Radford et al., 2022, section 4.5; arXiv:2212.04356). Nor do its notes: the files of
    Whisper forbid the signs that open "[Music]" or "(applause)", and it makes up words instead; here it writes the note
    with its times, and the note is not shown.

    Args:
        model: Whisper, with its tokenizer. Without a processor in its files, the published one is assumed.
        audio: a file, (samples, rate), or another form of `anyformer.media.sound`; several channels become one.
        language: its code or English name, "de" or "german"; by default that of the files, else the likeliest in the
            first window with words.
        task: transcribe, or translate to English; by default that of the files, else transcribe.
        timestamps: False writes the text without times: another text, for sounds of at most one window.
        words: also the time of each word, from the cross-attention of the heads that the files name.
        temperatures: the first is used; the others where a text is refused.
        previous: the text of the window before is the prompt of the next one.
        prompt: the text in front of the first window: names and spellings.
        seed: of the draws.
        notes: a text is a note where the signs that open one have more probability than this; 1 forbids them always.
        beams, lm, lm_weight: of a CTC head, see `generate.spelling.spell`; it has the options `words` and these.

    Raises:
        ValueError: naming the argument, for values that make no sense, a model that reads no sound, or a sound that
            cannot be read.
    """
    if ctc_head(model) is not None:
        if language or task or prompt or not timestamps:
            raise ValueError("language, task, prompt and timestamps are of Whisper; a CTC head spells what it hears")
        if words and beams != 1:
            raise ValueError(f"words have times on the likeliest path, and beams is {beams}; leave one of them out")
        return _of_frames(spell(model, audio, beams, lm, lm_weight), words)
    if beams != 1 or lm is not None:
        raise ValueError("beams and lm are for models with a CTC head; Whisper draws its text token by token")
    if model.takes != "input_features" or not model.reads_source:
        raise ValueError(f"{getattr(model, 'page', None) or type(model).__name__} reads {model.takes}, and no sound")
    if not temperatures or any(not 0 <= t <= 2 for t in temperatures):
        raise ValueError(f"temperatures must be numbers from 0 to 2, at least one; got {tuple(temperatures)}")
    if not 0 <= notes <= 1:
        raise ValueError(f"notes must be a probability, from 0 to 1; got {notes}")
    run = _Run(model, language, task, timestamps, tuple(temperatures), seed, notes)
    heard = sound(audio)
    samples = heard.at(run.processor.rate).samples
    if not timestamps and len(samples) > run.processor.samples:
        raise ValueError(
            f"{heard.name} has {heard.seconds:.1f} seconds; with timestamps=False at most {run.processor.window} are "
            "written, since times move the window"
        )
    if words and not timestamps:
        raise ValueError("words=True needs timestamps: the times of words lie inside those of their segment")
    with torch.inference_mode(), evaluating(model):
        segments = run.windows(samples, words, previous, prompt)
    text = "".join(segment.text for segment in segments).strip()
    return Transcript(text, run.language, tuple(segments), heard.seconds)


def _of_frames(spelt: Spelt, words: bool) -> Transcript:
    """One segment from the first letter to the last one; nothing for a sound without letters."""
    start, end = (spelt.words[0].start, spelt.words[-1].end) if spelt.words else (0.0, spelt.seconds)
    shown = spelt.words if words else ()
    one = Segment(spelt.text, start, end, spelt.symbols, 0.0, spelt.log_probability, 0.0, shown)
    return Transcript(spelt.text, None, (one,) if spelt.text else (), spelt.seconds)


def processor_of(model: Any) -> SoundProcessor:
    """The processor of a model of sound: that of its files, else the published one.

    Raises:
        ValueError: if it makes other features than the model reads.
    """
    made, front = model.processor or assumed(model), model.entrances()[0].front
    wanted = (front.mels, 2 * front.context)
    if not isinstance(made, SoundProcessor) or (made.mels, made.frames) != wanted:
        raise ValueError(
            f"the model reads {wanted[0]} mels in {wanted[1]} frames, and its processor makes others: {made}; set "
            "model.processor = anyformer.hub.processors.SoundProcessor(...)"
        )
    return made


class _Run:
    """One call of `transcribe`: the model, its marks, rules and options."""

    def __init__(
        self,
        model: Any,
        language: str | None,
        task: str | None,
        times: bool,
        temperatures: tuple[float, ...],
        seed: int,
        notes: float = NOTED,
    ):
        self.settings = settings_of(model)
        self.model, self.marks = model, marks(model, self.settings)
        self.language = language_of(self.marks, language, self.settings)
        self.task = task or self.settings.get("task") or "transcribe"
        if self.task not in TASKS or (not self.marks.tasks and self.task != "transcribe"):
            known = ", ".join(self.marks.tasks) or "transcribe; this model knows English only"
            raise ValueError(f"task is {self.task!r}; known are {known}")
        self.processor, self.temperatures, self.times = processor_of(model), temperatures, times
        self.rules = SpeechRules(self.marks, self.settings, model.vocab, self.processor.frames // 2, times, notes)
        self.noise = torch.Generator().manual_seed(seed)
        self.step = self.processor.window * 2 / self.processor.frames  # seconds of a time token
        self.like = next(model.parameters())

    def windows(self, samples: np.ndarray, words: bool, previous: bool, prompt: str) -> list[Segment]:
        """The segments of a sound, window by window."""
        p, at = self.processor, 0
        total = -(-len(samples) // p.hop)  # frames, the last of which may be begun only
        features = p.features(np.pad(samples, (0, p.samples)))
        before = self.model.tokenizer.encode(" " + prompt.strip(), special=False) if prompt.strip() else []
        found: list[Segment] = []
        while at < total:
            count = min(p.frames, total - at)
            if np.abs(samples[at * p.hop : (at + count) * p.hop]).max(initial=0.0) <= FAINT:
                at += count
                continue
            window = features[None, :, at : at + p.frames].to(self.like)
            memory = Memory(self.model.encode(input_features=window))
            detected = self.language is None and bool(self.marks.languages)
            if detected:
                self.language = self._detected(memory)
            written = self._written(memory, before)
            segments, moved = ([], count) if written.quiet else self.parted(written, at, count)
            segments = [s for s in segments if s.text.strip() and s.end > s.start]
            if detected and not segments:
                self.language = None  # music has none
            if words:
                segments = [self._timed(s, memory, at, count) for s in segments]
            found += segments
            if not previous or (segments and written.temperature > WILD):
                before = []
            else:
                before = before + [t for s in segments for t in s.tokens]
            at += moved
        return found

    def _opening(self, before: list[int]) -> list[int]:
        """The tokens in front of a window's text, with the end of the text before it."""
        m = self.marks
        own = [m.start] + ([m.languages[self.language], m.tasks[self.task]] if self.language and m.tasks else [])
        own += [] if self.times else [m.untimed]
        room = self.model.context // 2 - len(own)
        kept = before[max(0, len(before) - room + 1) :] if room > 1 else []
        return ([m.previous, *kept] if kept else []) + own

    def _written(self, memory: Memory, before: list[int]) -> Written:
        """The tokens of a window, at the first temperature that is not refused, else the last."""
        for temperature in self.temperatures:
            found = self._tokens(memory, self._opening(before), temperature)
            if not found.refused:
                break
        return found

    def _tokens(self, memory: Memory, opening: list[int], temperature: float) -> Written:
        """The tokens of a window at one temperature."""
        room = min(self.model.context // 2, self.model.context - len(opening))
        state = self.model.start(1, len(opening) + room)
        state.memory = memory
        given, tokens, total, silence = opening, list[int](), 0.0, 0.0
        for _ in range(room):
            ids = torch.tensor([given], device=self.like.device)
            scores = self.model(decoder_input_ids=ids, state=state, last=bool(tokens)).logits[0].float()  # (T or 1, V)
            if not bool(scores[-1].isfinite().all()):
                raise ValueError("the model's scores are not finite (NaN or infinite); are the weights whole?")
            if not tokens:
                silence = float(scores[opening.index(self.marks.start)].softmax(-1)[self.marks.silence])
            logs = self.rules.apply(scores[-1], tokens)  # (V,)
            token = int(logs.argmax()) if not temperature else self._drawn(logs, temperature)
            total += float(logs[token])
            if token == self.marks.end:
                break
            tokens.append(token)
            given = [token]
        spoken = self.rules.spoken(tokens, self._text)
        packed = self._text(spoken).encode()
        repeated = len(packed) / len(zlib.compress(packed)) if packed else 0.0
        wordless = len(spoken) < len(tokens) and not packed.strip()
        return Written(tokens, total / (len(tokens) + 1), silence, temperature, repeated, wordless)

    def _drawn(self, logs: Tensor, temperature: float) -> int:
        return int(torch.multinomial((logs / temperature).softmax(-1).cpu(), 1, generator=self.noise))

    def _text(self, tokens: Sequence[int]) -> str:
        return self.model.tokenizer.decode([t for t in tokens if t < self.marks.end])

    def _detected(self, memory: Memory) -> str:
        """The likeliest language of a window."""
        state = self.model.start(1, 1)
        state.memory = memory
        ids = torch.tensor([[self.marks.start]], device=self.like.device)
        scores = self.model(decoder_input_ids=ids, state=state).logits[0, -1]
        return max(self.marks.languages, key=lambda code: float(scores[self.marks.languages[code]]))

    def parted(self, written: Written, at: int, count: int) -> tuple[list[Segment], int]:
        """The segments of a window that begins at frame `at`, and the frames to the next window.

        Args:
            count: frames of sound in the window.
        """
        tokens, zero = written.tokens, self.marks.zero
        timed = [token >= zero for token in tokens]
        ends = [i for i in range(1, len(tokens)) if timed[i - 1] and timed[i]]  # where a segment begins after another
        closed = timed[-2:] == [False, True]  # one time at the end: nothing is said after it
        if not ends:
            times = [t - zero for t in tokens if t > zero]
            length = times[-1] * self.step if times else count * self.processor.hop / self.processor.rate
            return [self._segment(written, tokens, at, 0.0, length)], count
        segments, begun = [], 0
        for end in [*ends, *([len(tokens)] if closed else [])]:
            part = tokens[begun:end]
            segments.append(self._segment(written, part, at, *((t - zero) * self.step for t in (part[0], part[-1]))))
            begun = end
        moved = count if closed else round((tokens[ends[-1] - 1] - zero) * self.step * self._rate)
        return segments, min(max(1, moved), count)

    @property
    def _rate(self) -> float:
        """Frames a second."""
        return self.processor.rate / self.processor.hop

    def _segment(self, written: Written, part: list[int], at: int, start: float, end: float) -> Segment:
        tokens = self.rules.spoken(part, self._text)
        base, figures = at / self._rate, (written.temperature, written.log_probability, written.silence)
        return Segment(self._text(tokens), base + start, base + max(start, end), tuple(tokens), *figures)

    def _timed(self, segment: Segment, memory: Memory, at: int, count: int) -> Segment:
        """The segment with the times of its words."""
        tokens, first = [t for t in segment.tokens if t < self.marks.end], at / self._rate
        opening = [t for t in self._opening([]) if t != self.marks.untimed]
        frames = -(-count // 2)
        found = word_times(
            self.model, memory, opening, self.marks, tokens, frames, self.settings, self.language or "en"
        )
        inside = [Word(w.text, *(min(max(first + t * self.step, segment.start), segment.end) for t in (w.start, w.end)))
                  for w in found]  # fmt: skip
        return Segment(**{**vars(segment), "words": tuple(inside)})
