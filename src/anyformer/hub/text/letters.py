"""Tokenizers of spoken letters: `vocab.json` of `Wav2Vec2CTCTokenizer`, which has no tokenizer.json.

A letter is a token, and a space is the delimiter of words, `|`. Paths of frames are joined before they come here
(`generate.paths`): equal neighbours are two letters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core

from anyformer.hub.formats.guard import atomic_write, inside, read_json, refuse

VOCABULARY, KIND = "vocab.json", "Wav2Vec2CTCTokenizer"
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}  # where files name none
MOST = 1 << 22  # bytes of a vocabulary
BETWEEN = "word_delimiter_token"
ENDS = "^ +| +$"  # spaces at both ends of a text


def reads(folder: str | os.PathLike[str]) -> bool:
    """True for a folder whose tokenizer is such a `vocab.json`."""
    try:
        kind = json.loads((Path(folder) / "tokenizer_config.json").read_bytes()).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        return False
    return kind == KIND and os.path.lexists(Path(folder) / VOCABULARY)


def core(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> Core:
    """The tokenizer of a folder's `vocab.json`.

    Args:
        config: of tokenizer_config.json: `word_delimiter_token`, `replace_word_delimiter_char`, `do_lower_case`.

    Raises:
        FileRefused: for a vocabulary that is not a number for each token, or has one for each of several languages.
    """
    path = inside(folder, VOCABULARY)
    vocabulary = read_json(path, MOST)
    if not isinstance(vocabulary, dict) or not vocabulary or sorted(
        vocabulary.values(), key=lambda v: v if type(v) is int else -1
    ) != list(range(len(vocabulary))):  # fmt: skip
        expected = "an object of token: id, with the ids from 0 on; a vocabulary for each language must be chosen first"
        raise refuse(path, "content", expected, vocabulary)
    return made(vocabulary, config)


def made(vocabulary: Mapping[str, int], config: Mapping[str, Any]) -> Core:
    """The tokenizer of a vocabulary: letters without a token are the unknown one. See `core`."""
    between, space = config.get(BETWEEN) or "|", config.get("replace_word_delimiter_char") or " "
    named = {role: config.get(role) or usual for role, usual in ROLES.items()}
    marks = {role: t.get("content") if isinstance(t, dict) else t for role, t in named.items()}
    core = Core(models.WordLevel(dict(vocabulary), unk_token=marks["unk_token"]))
    upper = [t for t in vocabulary if len(t) == 1 and t != t.lower()] if config.get("do_lower_case") else []
    core.normalizer = normalizers.Sequence(
        [normalizers.Replace(" ", between), *(normalizers.Replace(t.lower(), t) for t in upper)]
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    lower = [decoders.Replace(t, t.lower()) for t in upper]
    spaces = [decoders.Replace(between, space), decoders.Fuse(), decoders.Replace(Regex(ENDS), "")]
    core.decoder = decoders.Sequence([*lower, *spaces])
    for token in (t for t in vocabulary if t != between and (len(t) > 1 or t in marks.values())):
        core.add_tokens([AddedToken(token, normalized=False, special=token in marks.values())])
    return core


def beside(config: Mapping[str, Any], core: Core) -> dict[str, Any]:
    """The config without what `core` has read: the delimiter, and numbers of tokens that `vocab.json` has."""
    held, known = config.get("added_tokens_decoder"), dict[Any, int](core.get_vocab())
    rest = {k: v for k, v in config.items() if k not in (BETWEEN, "added_tokens_decoder")}
    if not isinstance(held, dict):
        return rest if held is None else dict(config)
    more = {i: t for i, t in held.items() if not isinstance(t, dict) or str(known.get(t.get("content"))) != i}
    return {**rest, "added_tokens_decoder": more}


def save(folder: Path, core: Core) -> None:
    """Writes `vocab.json`."""
    vocabulary = dict(sorted(core.get_vocab().items(), key=lambda pair: pair[1]))
    atomic_write(folder / VOCABULARY, (json.dumps(vocabulary, indent=2, ensure_ascii=False) + "\n").encode())
