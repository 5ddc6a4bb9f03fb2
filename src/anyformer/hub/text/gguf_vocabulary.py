"""A tokenizer as the metadata of a GGUF file: the inverse of `gguf_tokenizer`, checked by reading it back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from anyformer.hub.text.gguf_tokenizer import CONTROL, KEY, PRE, UNKNOWN, USER, tokenizer_from_gguf
from anyformer.hub.text.tokenizer import Tokenizer

NORMAL, UNUSED, BYTE = 1, 5, 6  # kinds of tokens
NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
PROOF = (
    "The year 1984, it's 3.14  and  12345 — naïve café, 東京 🙂!\n\n\tx = [1, 2]; // don't\r\n  I'LL he'd'' ... "
    'Ünïcode ½ ǆ\u00a0end http://a.b/c?d=e_f-g {"k": null}\n'
)  # words, numbers, spaces and marks that tokenizers cut in different ways


def metadata_of(tokenizer: Tokenizer | None, size: int) -> dict[str, Any]:
    """The metadata of a tokenizer for a model of `size` tokens; rows without a token get an unused name.

    Raises:
        ValueError: if a GGUF file cannot describe it: another kind, unknown rules for words, or other ids when read.
    """
    if tokenizer is None:
        return {KEY + "model": "no_vocab"}
    core = json.loads(tokenizer.core.to_str())
    vocab: dict[str, int] = tokenizer.core.get_vocab(with_added_tokens=True)
    if max(vocab.values()) >= size:
        raise ValueError(f"the tokenizer has the token {max(vocab.values())}, and the model only {size} rows")
    names = {i: token for token, i in vocab.items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(size)]
    added = {token["content"]: CONTROL if token["special"] else USER for token in core["added_tokens"]}
    kinds = [added.get(token, NORMAL) if i in names else UNUSED for i, token in enumerate(tokens)]
    model = core["model"]
    if model["type"] != "BPE":
        raise ValueError(
            f"the tokenizer is of kind {model['type']}; a GGUF file holds byte-level and SentencePiece BPE"
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    made: dict[str, Any] = {KEY + "model": "llama" if model["byte_fallback"] else "gpt2", KEY + "tokens": tokens}
    if model["byte_fallback"]:
        kinds = [
            BYTE if _byte(t) else UNKNOWN if t == model["unk_token"] else k for t, k in zip(tokens, kinds, strict=True)
        ]
        made[KEY + "scores"] = _scores(tokens, model["merges"])
        made[KEY + "add_space_prefix"] = '"Prepend"' in json.dumps(core["normalizer"])
    else:
        made[KEY + "pre"], made[KEY + "merges"] = _pre(core, bool(merges)), merges
    made[KEY + "token_type"] = np.array(kinds, np.int32)
    made |= {f"{KEY}{name}_token_id": tokenizer.role_id(role) for role, name in NAMES.items()}
    ids = tokenizer.encode("a")
    made[KEY + "add_bos_token"] = bool(ids) and ids[0] == tokenizer.bos_id is not None
    made[KEY + "add_eos_token"] = bool(ids) and ids[-1] == tokenizer.role_id("eos_token") is not None
    others = sorted(tokenizer.eos_ids - {tokenizer.role_id("eos_token")})
    made |= {f"{KEY}{name}_token_id": i for name, i in zip(("eot", "eom"), others, strict=False)}
    made["tokenizer.chat_template"] = tokenizer.template
    made = {key: value for key, value in made.items() if value is not None}
    _check(tokenizer, made)
    return made


def _byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: list[str], merges: list[Any]) -> np.ndarray:
    """A score for each token, from the first merge that makes it: earlier ones score higher."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        first.setdefault(left + right, rank)
    ranks = {token: place for place, token in enumerate(sorted(first, key=first.__getitem__))}
    return np.array([-float(ranks.get(token, -1)) if token in ranks else 0.0 for token in tokens], np.float32)


def _pre(core: dict[str, Any], merges: bool) -> str:
    """The name of the rules by which the text is cut into words."""
    if not merges:  # single bytes, however the text is cut
        return "gpt-2"
    parts = _parts(core["pre_tokenizer"])
    digits = any(p["type"] == "Digits" and p["individual_digits"] for p in parts)
    splits = [p["pattern"]["Regex"] for p in parts if p["type"] == "Split" and "Regex" in p["pattern"]]
    words = [p for p in parts if p["type"] == "ByteLevel"]
    known = len(words) == 1 and not words[0]["add_prefix_space"] and words[0]["use_regex"] == (not splits)
    nfc = any(p["type"] == "NFC" for p in _parts(core["normalizer"]))
    if known and len(parts) == len(splits) + digits + 1:
        for name, pre in PRE.items():
            same = (pre.split, pre.digits, pre.nfc) == (splits[0] if splits else None, digits, nfc)
            if same and pre.whole == bool(core["model"].get("ignore_merges")) and len(splits) <= 1:
                return name
    raise ValueError(f"the tokenizer cuts text into words by rules that no GGUF name stands for: {_short(parts)}")


def _parts(value: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, in order."""
    if value is None:
        return []
    inner = value.get("pretokenizers", value.get("normalizers"))
    return [value] if inner is None else [p for one in inner for p in _parts(one)]


def _short(parts: list[dict[str, Any]]) -> str:
    return json.dumps(parts)[:200]


def _check(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    """Raises ValueError if the metadata are read as a tokenizer that gives other ids."""
    back = tokenizer_from_gguf(metadata)
    assert back is not None
    special = "".join(tokenizer.roles.values())
    for text in (PROOF, f" {PROOF}", f"{special} a {special}b", *PROOF.split()):
        for surround in (True, False):
            ours, theirs = tokenizer.encode(text, surround), back.encode(text, surround)
            if ours != theirs:
                place = next(
                    (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                    min(len(ours), len(theirs)),
                )
                raise ValueError(
                    f"a GGUF file would give other ids: for {text[:40]!r} from token {place} on "
                    f"{theirs[place : place + 3]} in place of {ours[place : place + 3]}"
                )
    if back.eos_ids != tokenizer.eos_ids:
        raise ValueError(f"a GGUF file would end texts at {sorted(back.eos_ids)}, not at {sorted(tokenizer.eos_ids)}")
