"""The vocabulary of a speech model: its marks, languages, and the grammar of its times. V vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.core.value import nearest
from anyformer.generate.prompts import tokenizer_of
from anyformer.generate.rules import OUT
from anyformer.hub.generation import OPENING, RULES, check_rule, unmet

ENGLISH = 51864  # tokens of the published English models; the others have more
OBEYED = ("eos_token_id", "decoder_start_token_id", "suppress_tokens", "begin_suppress_tokens")  # of RULES
FIRST = 50  # times up to 1 s can be the first of a window, where the files name no other number
LANGUAGES = """
en english zh chinese de german es spanish ru russian ko korean fr french ja japanese pt portuguese tr turkish pl polish
ca catalan nl dutch ar arabic sv swedish it italian id indonesian hi hindi fi finnish vi vietnamese he hebrew
uk ukrainian el greek ms malay cs czech ro romanian da danish hu hungarian ta tamil no norwegian th thai ur urdu
hr croatian bg bulgarian lt lithuanian la latin mi maori ml malayalam cy welsh sk slovak te telugu fa persian lv latvian
bn bengali sr serbian az azerbaijani sl slovenian kn kannada et estonian mk macedonian br breton eu basque is icelandic
hy armenian ne nepali mn mongolian bs bosnian kk kazakh sq albanian sw swahili gl galician mr marathi pa punjabi
si sinhala km khmer sn shona yo yoruba so somali af afrikaans oc occitan ka georgian be belarusian tg tajik sd sindhi
gu gujarati am amharic yi yiddish lo lao uz uzbek fo faroese ht haitian ps pashto tk turkmen nn nynorsk mt maltese
sa sanskrit lb luxembourgish my myanmar bo tibetan tl tagalog mg malagasy as assamese tt tatar haw hawaiian ln lingala
ha hausa ba bashkir jw javanese su sundanese yue cantonese
"""
CODES = {name: code for code, name in re.findall(r"(\w+) (\w+)", LANGUAGES)}  # name -> code
TASKS = ("transcribe", "translate")
NOTES = {"[": "]", "(": ")", "*": "*", "♪": "", "♫": "", "♬": "", "♩": ""}  # what opens a note, and what ends it


@dataclass(frozen=True)
class Marks:
    """The special tokens of a speech model.

    Attributes:
        start, end, previous, silence, untimed: the tokens that begin and end a text, that precede the text before it,
            that mark a window without speech and a text without times.
        tasks: of each task. languages: of each language code; both empty in a model of one language.
        hidden: tokens that are never written.
        notes: of each token that opens a note on what is no speech, "[Music]" or "(applause)", the sign that ends it;
            only tokens that the files keep out of the text.
    """

    start: int
    end: int
    previous: int
    silence: int
    untimed: int
    tasks: Mapping[str, int]
    languages: Mapping[str, int]
    hidden: tuple[int, ...]
    notes: Mapping[int, str]

    @property
    def zero(self) -> int:
        """The token of the time 0; those of later times follow, 0.02 s each."""
        return self.untimed + 1


def marks(model: Any, settings: Mapping[str, Any]) -> Marks:
    """The marks of a model, from its tokenizer.

    Raises:
        ValueError: naming the token, if the tokenizer is missing, or that of another model.
    """
    core = tokenizer_of(model, "sounds").core

    def token(*names: str) -> int:
        found = next((i for n in names if (i := core.token_to_id(f"<|{n}|>")) is not None), None)
        if found is None or found >= model.vocab:
            raise ValueError(f"the tokenizer has no token <|{names[0]}|> of this model; is it that of another one?")
        return found

    start, untimed, tasks = token("startoftranscript"), token("notimestamps"), {n: token(n) for n in TASKS}
    if start != model.begin_id:
        raise ValueError(f"<|startoftranscript|> is {start} in the tokenizer, and {model.begin_id} in the model")
    special = core.get_added_tokens_decoder()
    codes = {i: re.fullmatch(r"<\|([a-z]{2,3})\|>", t.content) for i, t in special.items() if start < i < untimed}
    languages = {match[1]: i for i, match in codes.items() if match}
    if not settings.get("is_multilingual", model.vocab > ENGLISH):
        languages, tasks = {}, {}
    words = [core.token_to_id(f"<|{name}|>") for name in ("startoftranscript", "startoflm", *TASKS)]
    previous, silence = token("startofprev"), token("nospeech", "nocaptions")
    hidden = tuple(sorted({*(i for i in words if i is not None), *languages.values(), previous, silence}))
    notes = _notes(core, settings.get("suppress_tokens") or [])
    return Marks(start, token("endoftext"), previous, silence, untimed, tasks, languages, hidden, notes)


def _notes(core: Any, suppressed: Collection[int]) -> dict[int, str]:
    """Of each suppressed token that opens a note, the sign that ends it. A sign can be several tokens, and several
    signs one."""
    written = ((core.encode(space + sign * n, add_special_tokens=False).ids[0], end)
               for sign, end in NOTES.items() for space in ("", " ") for n in (1, 2, 3))  # fmt: skip
    return {token: end for token, end in written if token in suppressed}


def language_of(known: Marks, asked: str | None, settings: Mapping[str, Any]) -> str | None:
    """The code of the language that the caller asks for, else that of the files; None if neither names one.

    Raises:
        ValueError: with the nearest codes, for a language that the model does not know.
    """
    if not known.languages:
        if asked is not None and CODES.get(asked.lower(), asked) != "en":
            raise ValueError(f"language is {asked!r}, and this model knows English only; take a multilingual one")
        return None
    forced = [pair[1] for pair in settings.get("forced_decoder_ids") or [] if isinstance(pair, list) and len(pair) == 2]
    stored = next((code for code, i in known.languages.items() if i in forced), None)
    name = asked or settings.get("language") or stored
    if name is None:
        return None
    code = str(name).lower().removeprefix("<|").removesuffix("|>")
    code = CODES.get(code, code)
    if code not in known.languages:
        near = nearest(code, [*known.languages, *CODES])
        raise ValueError(f"language is {name!r}{near}; known are {', '.join(known.languages)}")
    return code


class SpeechRules:
    """The rules of a written window: tokens that are never written or never come first, and the grammar of times.

    ```
    <0.00> text <2.40> <2.40> text <5.20> end        times come in pairs around a text, and never go back
    <0.00> [Music] <2.40> <2.40> text <5.20> end     a note is written where its openers are likely, and is not shown
    ```
    A time is written where all times together are likelier than any token of text (Radford et al., 2022).

    Args:
        vocab: V. steps: the number of the last time. times: write times.
        noted: a text is a note where its openers have more probability than this, before anything is forbidden.

    Raises:
        ValueError: naming the key, if the files ask for something unsupported or senseless.
    """

    def __init__(
        self, known: Marks, settings: Mapping[str, Any], vocab: int, steps: int, times: bool, noted: float = 1.0
    ):
        for key, value in {**{k: settings.get(k) for k in RULES if k not in OBEYED}, **unmet(settings)}.items():
            if value and key != OPENING:
                raise ValueError(
                    f"the model's files set {key}={value!r:.80}, which transcribe cannot do; "
                    f"load(..., ignore=[{key!r}]) goes without it"
                )
        for key in ("suppress_tokens", "begin_suppress_tokens"):
            check_rule("generation", key, settings.get(key))
        suppressed = {i for i in settings.get("suppress_tokens") or [] if i < vocab}
        barred = {*known.hidden, *([known.untimed] if times else []), *(i for i in suppressed if i >= known.end)}
        barred |= {*range(known.zero + steps + 1, vocab)}  # tokens that were added behind the times
        self.suppressed = suppressed
        self.never, self.barred = torch.tensor(sorted(barred | suppressed)), torch.tensor(sorted(barred))
        self.not_first = [i for i in settings.get("begin_suppress_tokens") or [] if i < vocab]
        self.marks, self.times, self.noted = known, times, noted
        self.openers = torch.tensor(sorted(known.notes))
        first = settings.get("max_initial_timestamp_index")
        self.first = FIRST if first is None else int(first)

    def part(self, written: list[int]) -> list[int]:
        """The tokens behind the last time."""
        return written[next((i + 1 for i in reversed(range(len(written))) if written[i] >= self.marks.zero), 0) :]

    def _allowed(self, scores: Tensor, written: list[int], opens: bool) -> Tensor:
        """Scores (V,) without what is never written; inside a note, signs are.

        Args:
            opens: a text begins here.
        """
        part = self.part(written)
        if part and part[0] in self.marks.notes:
            return scores.index_fill(0, self.barred.to(scores.device), OUT)
        openers = self.openers.to(scores.device)
        if opens and len(openers) and float(scores.softmax(-1)[openers].sum()) > self.noted:
            return torch.full_like(scores, OUT).index_copy(0, openers, scores[openers])
        return scores.index_fill(0, self.never.to(scores.device), OUT)

    def apply(self, scores: Tensor, written: list[int]) -> Tensor:
        """Scores (V,) of the next token of a window with forbidden tokens at minus infinity, and their logarithms of
        probability."""
        zero = self.marks.zero
        ended = bool(written) and written[-1] >= zero  # the last token is a time
        paired = len(written) < 2 or written[-2] >= zero  # and so is the one before it, or there is none
        scores = self._allowed(scores.float(), written, ended and paired if self.times else not written)
        if not written:
            scores[self.not_first] = OUT
        if not self.times:
            scores[zero:] = OUT
            return scores.log_softmax(-1)
        if not written:
            scores[:zero] = OUT
            scores[zero + self.first + 1 :] = OUT
            return scores.log_softmax(-1)
        if ended and paired:
            scores[zero:] = OUT
        elif ended:
            scores[: self.marks.end] = OUT
        last = next((t for t in reversed(written) if t >= zero), zero - 1)
        scores[zero : last if ended and not paired else last + 1] = OUT
        logs = scores.log_softmax(-1)
        if logs[zero:].logsumexp(-1) > logs[:zero].max():
            logs = scores.index_fill(0, torch.arange(zero, device=scores.device), OUT).log_softmax(-1)
        return logs

    def spoken(self, written: list[int], text: Callable[[list[int]], str]) -> list[int]:
        """Tokens without the notes: of a text between times that opens with one, its words are left.

        Args:
            text: of tokens.
        """
        kept, noted, end, begun = list[int](), False, "", False
        for token in written:
            if token >= self.marks.zero:
                noted, end, begun = False, "", False
            elif not begun:
                noted, begun = token in self.marks.notes, True
            if not noted or (not end and token not in self.suppressed):
                kept.append(token)
            elif end:
                end = "" if end in text([token]) else end
            else:
                end = self.marks.notes.get(token, "")
        return kept
