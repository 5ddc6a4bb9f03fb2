"""Text to token ids and back: one class for every model, thin over `tokenizers`.

The files are those of Hugging Face, in and out: `tokenizer.json` (vocabulary, rules),
`tokenizer_config.json` (which tokens are bos, eos, pad …), `special_tokens_map.json` (the same, older),
`chat_template.jinja` (else `chat_template` in the config). Truncation and padding that a `tokenizer.json`
can switch on are switched off: text is never cut silently, and `batch` pads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core
from torch import Tensor

from anyformer.hub.formats.guard import FileRefused, atomic_write, inside, read_bytes, read_json, refuse, short
from anyformer.hub.tables.config import Line
from anyformer.hub.text import letters, residues
from anyformer.hub.text.keys import CONFIG_KEYS, GENERAL, ROLES, SPECIAL_KEYS, account, add_tokens, follow
from anyformer.hub.text.template import MAX_TEMPLATE, render

MAX_BYTES = 200_000_000  # of tokenizer.json; the largest published ones have 35 MB
MAX_CONFIG = 20_000_000
END = "<|endoftext|>"
CORE, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE, OF_PROCESSOR, ADDED = "chat_template.jinja", "chat_template.json", "added_tokens.json"


OPEN = re.compile(r"(^|\s)('\S*|n('t?)?|)$")  # a last word that later text may still join to the one before


class Tokenizer:
    """A `tokenizers.Tokenizer` (`core`), the roles of its special tokens, and a chat template.

    `roles` names tokens (`{"bos_token": "<s>", …}`; one that the vocabulary lacks has no id); they count as
    special. `config` is the rest of `tokenizer_config.json`: `save` writes it back. `eos_ids` is a set to
    which a loader may add (the generation config of a model can name several).
    """

    def __init__(
        self,
        core: Core,
        roles: dict[str, str] | None = None,
        template: str | None = None,
        config: dict[str, Any] | None = None,
    ):
        core.no_truncation()
        core.no_padding()
        self.core, self.roles, self.template = core, dict(roles or {}), template
        self.config = dict(config or {"tokenizer_class": "PreTrainedTokenizerFast"})
        self.special: dict[str, Any] = {}  # the rest of special_tokens_map.json
        self.ledger: dict[str, list[Line]] = {}  # a line for each key of the files
        special = {token.content for token in core.get_added_tokens_decoder().values()}
        missing = [t for t in self.roles.values() if t not in special and core.token_to_id(t) is not None]
        core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in missing])
        end = self.role_id("eos_token")
        self.eos_ids: set[int] = set() if end is None else {end}

    def role_id(self, role: str) -> int | None:
        """The id of the token that has a role (`bos_token`, `mask_token` …), or None."""
        return self.core.token_to_id(self.roles[role]) if role in self.roles else None

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special and added ones included (a model can have more rows than that)."""
        return self.core.get_vocab_size()

    @property
    def longest(self) -> int | None:
        """The longest text in tokens, `model_max_length` of its file; None if it is absent or so large that it means
        none."""
        length = self.config.get("model_max_length")
        if not isinstance(length, int | float) or isinstance(length, bool) or not 0 < length < 1e9:
            return None
        return int(length)

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins a text, or None."""
        return self.role_id("bos_token")

    @property
    def pad_id(self) -> int:
        """The id that fills a batch: the pad token, else an end token, else 0 (the mask hides it in any case)."""
        pad = self.role_id("pad_token")
        return pad if pad is not None else min(self.eos_ids, default=0)

    # ------------------------------------------------------------------------------------ text and ids

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of `text`; with `special`, the tokens that the model expects around it (bos, [CLS] …) too.

        Special tokens written out in `text` become those tokens in either case. Errors: ValueError for
        anything but text.
        """
        return self._encode([text], special)[0]

    def _encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        try:
            return [e.ids for e in self.core.encode_batch(list(texts), add_special_tokens=special)]
        except TypeError:
            raise ValueError(f"text: expected a str that UTF-8 can write, got {short(texts)}") from None

    def decode(self, ids: Iterable[int] | Tensor, skip_special: bool = True) -> str:
        """The text of `ids`.

        An id without a token decodes to nothing: models can have more rows than their vocabulary has tokens.
        """
        text = self.core.decode([int(i) for i in ids], skip_special_tokens=skip_special)
        return tidied(text) if self.tidies else text

    @property
    def tidies(self) -> bool:
        """True if `decode` removes spaces before punctuation, as the files specify; never with BPE, whose spaces are
        those of the text."""
        asked = self.config.get("clean_up_tokenization_spaces") is True
        return asked and not isinstance(self.core.model, models.BPE)

    def with_special(self, token: int, text: str) -> Tokenizer:
        """A copy in which `text` is the special token of this id. Errors: ValueError if it is not the next free id."""
        core = Core.from_str(self.core.to_str())
        if token != (known := core.token_to_id(text)):
            if known is not None or token != core.get_vocab_size():
                raise ValueError(
                    f"{text!r} cannot be token {token}: it is {known}, and {core.get_vocab_size()} is free"
                )
            core.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        made = Tokenizer(core, self.roles, self.template, self.config)
        made.eos_ids = set(self.eos_ids)
        return made

    def batch(
        self, texts: Sequence[str], padding: Literal["left", "right"] = "right", special: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Several texts as `input_ids` and `attention_mask` (1 = text), each (B, T) long, padded to the longest."""
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts: expected a list of at least one text, got {short(texts)}")
        if padding not in ("left", "right"):
            raise ValueError(f"padding: expected 'left' or 'right', got {padding!r}")
        rows = self._encode(texts, special)
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_id)  # (B, T)
        mask = torch.zeros(len(rows), width, dtype=torch.long)  # (B, T)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if padding == "left" else slice(len(row))
            ids[i, place] = torch.tensor(row, dtype=torch.long)
            mask[i, place] = 1
        return ids, mask

    def stream(self, skip_special: bool = True) -> Stream:
        """A decoder that takes ids one by one."""
        return Stream(self, skip_special)

    # -------------------------------------------------------------------------------------------- chat

    def chat(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True, tools: Any = None) -> str:
        """The text of a conversation, `[{"role": "user", "content": "…"}, …]`, with tools, in the model's own format.

        Errors: ValueError without a template, for messages without a role, and from the template.
        """
        if self.template is None:
            raise ValueError(
                f"this tokenizer has no chat template (looked for {TEMPLATE}, chat_template in {CONFIG}): the model "
                "was not trained for conversations; use `generate` to continue a text"
            )
        if not messages or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
            raise ValueError(f"messages: expected dicts with 'role' and 'content', got {short(messages)}")
        variables = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        return render(self.template, {**self.roles, "tools": tools, "documents": None, **variables})

    def chat_ids(self, messages: list[Any], add_generation_prompt: bool = True, tools: Any = None) -> list[int]:
        """The ids of a conversation. The template writes bos itself, so nothing is added around it."""
        return self.encode(self.chat(messages, add_generation_prompt, tools), special=False)

    # ------------------------------------------------------------------------------------------- files

    def ids(self) -> dict[str, Any]:
        """The special ids as a `config.json` names them; only those set."""
        eos = sorted(self.eos_ids)
        named = {"bos": self.bos_id, "eos": eos if len(eos) > 1 else next(iter(eos), None)}
        return {f"{k}_token_id": v for k, v in {**named, "pad": self.role_id("pad_token")}.items() if v is not None}

    @staticmethod
    def exists(folder: str | os.PathLike[str]) -> bool:
        """True if the folder has a tokenizer for `load`."""
        return os.path.lexists(Path(folder) / CORE) or residues.reads(folder) or letters.reads(folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], ignore: Collection[str] = ()) -> Tokenizer:
        """The tokenizer of a Hugging Face folder.

        Tokens and rules that are only in `tokenizer_config.json`, `special_tokens_map.json` or `added_tokens.json`
        count, too. `ignore`: keys of these that are passed over. Errors: FileNotFoundError, FileRefused, and ValueError
        naming an unknown key.
        """
        if not cls.exists(folder):
            others = [n for n in ("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")
                      if os.path.lexists(Path(folder) / n)]  # fmt: skip
            hint = f"; {', '.join(others)} is not enough alone; convert it with `transformers`" if others else ""
            raise FileNotFoundError(f"{folder}: no tokenizer; looked for {CORE} (with {CONFIG}, {SPECIAL}){hint}")
        spoken = not os.path.lexists(Path(folder) / CORE) and letters.reads(folder)
        proteins = not spoken and not os.path.lexists(Path(folder) / CORE)
        special, config = _optional_json(folder, SPECIAL), _optional_json(folder, CONFIG)
        sources = ((SPECIAL, SPECIAL_KEYS, special), (CONFIG, CONFIG_KEYS, config))
        ledger = {name: account(name, keys, file, ignore) for name, keys, file in sources if file}
        special, config = ({k: v for k, v in file.items() if k not in ignore} for file in (special, config))
        if spoken or proteins:
            core = letters.core(folder, config) if spoken else residues.core(folder)
        else:
            path = inside(folder, CORE)
            core = _core(read_bytes(path, MAX_BYTES), path)
        roles = {**_roles(special, Path(folder) / SPECIAL), **_roles(config, Path(folder) / CONFIG)}
        roles = {**letters.ROLES, **roles} if spoken else roles
        rest = letters.beside(config, core) if spoken else config
        add_tokens(core, Path(folder) / CONFIG, [special, rest], _optional_json(folder, ADDED))
        named = config.get("chat_template")
        template = _template(folder, named)
        if not isinstance(named, list):
            config.pop("chat_template", None)  # several named ones are kept, and one is read
        made = cls(core, roles, template, config)
        follow(core, config)
        if proteins:  # `save` writes tokenizer.json
            made.config["tokenizer_class"] = GENERAL[1]
        made.special, made.ledger = special, ledger
        return made

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and the template."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.config.get("tokenizer_class") == letters.KIND:
            letters.save(folder, self.core)
        else:
            atomic_write(folder / CORE, self.core.to_str(pretty=True).encode())
        for name, content in ((CONFIG, {**self.config, **self.roles}), (SPECIAL, {**self.special, **self.roles})):
            atomic_write(folder / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        if self.template is not None:
            atomic_write(folder / TEMPLATE, self.template.encode())
        else:
            (folder / TEMPLATE).unlink(missing_ok=True)

    # --------------------------------------------------------------------------------------- new ones

    @classmethod
    def bytes_level(cls) -> Tokenizer:
        """One token for each byte (id = byte) and `<|endoftext|>` (id 256), which is bos, eos and pad."""
        core = Core(models.BPE(vocab={letter: byte for byte, letter in enumerate(byte_letters())}, merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.add_special_tokens([AddedToken(END, normalized=False, special=True)])
        return cls._byte_level(core)

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab: int, special: Sequence[str] = ()) -> Tokenizer:
        """Byte-level BPE of at most `vocab` tokens: `<|endoftext|>` (id 0), `special` ones, 256 bytes, and merges.

        Words are cut as GPT-2 does, numbers into digits. The same texts give the same tokenizer.
        """
        if vocab < (least := 257 + len(special)):
            raise ValueError(
                f"vocab: expected at least {least} (256 bytes and {', '.join((END, *special))}), got {vocab}"
            )
        core = Core(models.BPE())
        core.pre_tokenizer = _splits()
        core.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocab, special_tokens=[END, *special], initial_alphabet=byte_letters(), show_progress=False
            ),
        )
        return cls._byte_level(core)

    @classmethod
    def _byte_level(cls, core: Core) -> Tokenizer:
        core.decoder = decoders.ByteLevel()
        return cls(core, {"bos_token": END, "eos_token": END, "pad_token": END})


class Stream:
    """Decodes ids one by one: the results of `put` and `end`, joined, are `decode` of all ids.

    Text is held back while it could still change: an incomplete character, and, for
    tokenizers with byte tokens (`<0xE4>`), a run of these. Each step decodes only the ids held back and
    those of the last text returned, so that the decoder does not take the middle of a text for its beginning.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool):
        self._tokenizer, self._skip = tokenizer, skip_special
        added = tokenizer.core.get_added_tokens_decoder()
        self._hidden = {i for i, token in added.items() if token.special and skip_special}
        self._before: list[int] = []
        self._held: list[int] = []

    def put(self, token: int) -> str:
        """The text that is final after `token`: often empty, or of more than this token."""
        if token in self._hidden:
            return ""
        self._held.append(token)
        text = self._text()
        if self._tokenizer.tidies and OPEN.search(self._raw()):
            return ""
        letters = self._tokenizer.core.id_to_token(token) or ""
        if not text or text.endswith("\ufffd") or re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", letters):
            return ""
        self._before, self._held = self._held, []
        return text

    def _raw(self) -> str:
        """The text of the ids held back, and of those before, with every space."""
        return self._tokenizer.core.decode(self._before + self._held, skip_special_tokens=self._skip)

    def end(self) -> str:
        """The text held back, at the end."""
        text = self._text()
        self._before, self._held = [], []
        return text

    def _text(self) -> str:
        """The text of the ids held back."""
        shown = self._tokenizer.decode(self._before, self._skip)
        return self._tokenizer.decode(self._before + self._held, self._skip)[len(shown) :]


def tidied(text: str) -> str:
    """The text without spaces before punctuation and contractions, in the order of transformers."""
    for mark in (" .", " ?", " !", " ,"):
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for short_word in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(short_word, short_word[1:])
    return text


def byte_letters() -> list[str]:
    """The letters in which byte-level BPE writes the 256 bytes: itself where it prints, else one from 256 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _splits() -> pre_tokenizers.PreTokenizer:
    """GPT-2's words, with single digits."""
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return pre_tokenizers.Sequence(parts)


def _core(data: bytes, path: Path) -> Core:
    try:
        return Core.from_buffer(data)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the Rust side raises plain exceptions, and panics as BaseException
        raise FileRefused(f"{path}: not a tokenizer: {short(str(error))}") from None


def _optional_json(folder: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """The object in a JSON file of `folder`, empty when there is none."""
    if not os.path.lexists(Path(folder) / name):
        return {}
    path = inside(folder, name)
    content = read_json(path, MAX_CONFIG)
    if not isinstance(content, dict):
        raise refuse(path, "content", "a JSON object", content)
    return content


def _roles(config: dict[str, Any], path: Path) -> dict[str, str]:
    """Take the roles out of a config; a token is given as text, or as an object with its `content`."""
    roles = {}
    for role in ROLES:
        token = config.pop(role, None)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(token, str):
            raise refuse(path, role, "a token", token)
        if token is not None:
            roles[role] = token
    return roles


def _template(folder: str | os.PathLike[str], value: Any) -> str | None:
    """The chat template: the file, else that of a processor, else of the config (a text, or `default` of several)."""
    path = Path(folder) / TEMPLATE
    if os.path.lexists(path):
        try:
            return read_bytes(inside(folder, TEMPLATE), 4 * MAX_TEMPLATE).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileRefused(f"{path}: not UTF-8 at byte {error.start}") from None
    value = _optional_json(folder, OF_PROCESSOR).get("chat_template", value)
    if isinstance(value, list):
        named = [entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
        value = named[0].get("template") if named else None
    if value is not None and not isinstance(value, str):
        raise refuse(Path(folder) / CONFIG, "chat_template", "a text", value)
    return value
