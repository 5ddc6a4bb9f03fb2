"""The tokenizer that a GGUF file carries in its metadata, as a `Tokenizer`.

Two families, by `tokenizer.ggml.model`:

- `gpt2`: byte-level BPE with its merges. The cut of text into words before that is only named, in
  `tokenizer.ggml.pre`; the known names are in `PRE`, any other is an error: a wrong guess would silently give
  other ids for the same text.
- `llama`: SentencePiece BPE. There are no merges but a score for each token; the pair whose union
scores highest is merged first. Characters without a token become bytes (`<0xE4>`).

Where `transformers` (5.23) reads the same file otherwise, the program that made the vocabulary decides: for
`smollm` each digit is cut off before words are made (there: with them, so that two spaces before a digit
give other tokens); for `llama` a space goes before every text and after each special token (there: not
before a space).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Core

from anyformer.hub.formats.guard import refuse, short
from anyformer.hub.text.tokenizer import Tokenizer

UNKNOWN, CONTROL, USER = 2, 3, 4  # tokenizer.ggml.token_type; 1 normal, 5 unused, 6 byte
KEY = "tokenizer.ggml."
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>")


class Pre(NamedTuple):
    """The pre-tokenizer: `digits` each alone; then words by `split`, by default as in GPT-2."""

    split: str | None = None
    digits: bool = False
    whole: bool = False  # a word that is a token is one token, whatever the merges
    nfc: bool = False
    bos: bool = False  # the default of adding bos


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "mpt", "olmo", "phi-2", "roberta-bpe"), Pre()),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), Pre(digits=True)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), Pre(LLAMA3, whole=True, bos=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Pre(LLAMA3)),
    "qwen2": Pre(QWEN2, nfc=True),
    "deepseek-r1-qwen": Pre(QWEN2),
    "tekken": Pre(TEKKEN, whole=True, bos=True),
}


def tokenizer_from_gguf(metadata: Mapping[str, Any], source: object = "GGUF") -> Tokenizer | None:
    """The tokenizer that the metadata of a GGUF file describe, or None where they describe none.

    `source` names the file in errors (FileRefused).
    """
    if metadata.get(KEY + "model", "none") in ("none", "no_vocab"):  # a model of ids alone
        return None
    tokens = metadata.get(KEY + "tokens")
    if not isinstance(tokens, list) or not tokens:
        raise refuse(source, KEY + "tokens", "a list of texts", tokens)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise refuse(source, KEY + "tokens", "every token once", f"{short(twice)} twice")
    types = _numbers(metadata, "token_type", len(tokens), source)
    family = metadata.get(KEY + "model")
    if family == "gpt2":
        core, bos = _byte_level(metadata, vocab, source)
    elif family == "llama":
        core, bos = _sentencepiece(metadata, tokens, vocab, types, source), True
    else:
        raise refuse(source, KEY + "model", "gpt2 or llama", family)
    roles = {
        f"{role}_token": tokens[metadata[key]]
        for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if _is_id(metadata, key := f"{KEY}{name}_token_id", len(tokens), source)
    }
    _add_special(core, tokens, types, roles)
    begin = bool(metadata.get(KEY + "add_bos_token", bos)) and "bos_token" in roles
    end = bool(metadata.get(KEY + "add_eos_token", False)) and "eos_token" in roles
    _surround(core, roles.get("bos_token") if begin else None, roles.get("eos_token") if end else None)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise refuse(source, "tokenizer.chat_template", "a text", template)
    tokenizer = Tokenizer(core, roles, template)
    for name in ("eot", "eom"):
        if _is_id(metadata, key := f"{KEY}{name}_token_id", len(tokens), source):
            tokenizer.eos_ids.add(metadata[key])
    tokenizer.eos_ids |= {vocab[t] for t in END_OF_TURN if t in vocab and types[vocab[t]] in (CONTROL, USER)}
    return tokenizer


def _numbers(metadata: Mapping[str, Any], name: str, count: int, source: object) -> list[Any]:
    """A numeric array of one entry per token; all 1 (types) or 0 (scores) when it is missing."""
    values = metadata.get(KEY + name)
    if values is None:
        return [1 if name == "token_type" else 0.0] * count
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise refuse(source, KEY + name, f"an array of {count:,} numbers, one per token", values)
    return values.tolist()


def _is_id(metadata: Mapping[str, Any], key: str, count: int, source: object) -> bool:
    """True if the metadata have a token id under `key`; any other value is refused."""
    value = metadata.get(key)
    if value is not None and not (type(value) is int and 0 <= value < count):
        raise refuse(source, key, f"a token id below {count:,}", value)
    return value is not None


def _byte_level(metadata: Mapping[str, Any], vocab: dict[str, int], source: object) -> tuple[Core, bool]:
    """Byte-level BPE, and the default of adding bos."""
    name = metadata.get(KEY + "pre", "default")
    if name not in PRE:
        raise refuse(source, KEY + "pre", f"one of {', '.join(sorted(PRE))}", name)
    pre = PRE[name]
    lines = metadata.get(KEY + "merges")
    if not isinstance(lines, list):
        raise refuse(source, KEY + "merges", "a list of texts", lines)
    merges = [tuple(line.split(" ")) for line in lines]
    for pair in merges:
        if len(pair) != 2 or not (pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab):
            raise refuse(source, KEY + "merges", "pairs of tokens whose union is a token", " ".join(pair))
    core = Core(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.whole))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    steps += [pre_tokenizers.Split(Regex(pre.split), "isolated")] if pre.split else []
    steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None)]
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    core.decoder = decoders.ByteLevel()
    if pre.nfc:
        core.normalizer = normalizers.NFC()
    return core, pre.bos


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], vocab: dict[str, int], types: list[int], source: object
) -> Core:
    scores = _numbers(metadata, "scores", len(tokens), source)
    merges = []
    for token, i in vocab.items():
        if types[i] in (1, USER) and len(token) > 1:
            pairs = [(token[:k], token[k:]) for k in range(1, len(token))]
            made = [(vocab[a], vocab[b], a, b) for a, b in pairs if a in vocab and b in vocab]
            merges += [(-scores[i], i, *pair) for pair in made]
    merges.sort()
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    pairs = [merge[-2:] for merge in merges]
    core = Core(models.BPE(vocab=vocab, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    space = bool(metadata.get(KEY + "add_space_prefix", True))
    steps = [normalizers.Prepend("▁")] if space else []
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    ends = [decoders.Strip(" ", 1, 0)] if space else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    return core


def _add_special(core: Core, tokens: list[str], types: list[int], roles: dict[str, str]) -> None:
    """Adds control and unknown tokens (hidden when decoding) and the user's own, which are never split."""
    hidden = {token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, UNKNOWN)}
    hidden |= set(roles.values())
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens if token in hidden])
    own = [token for token, kind in zip(tokens, types, strict=True) if kind == USER and token not in hidden]
    core.add_tokens([AddedToken(token, normalized=False, special=False) for token in own])


def _surround(core: Core, begin: str | None, end: str | None) -> None:
    """Have `encode` put bos before a text and eos behind it."""
    if begin is None and end is None:
        return
    one = [*([begin] if begin else []), "$A", *([end] if end else [])]
    two = [*one, *([f"{begin}:1"] if begin else []), "$B:1", *([f"{end}:1"] if end else [])]
    ids = [(token, core.token_to_id(token)) for token in (begin, end) if token]
    core.post_processor = processors.TemplateProcessing(single=one, pair=two, special_tokens=ids)
