"""Tokenizers of the students: pieces of words, learned from the texts, or those of a teacher that the texts have most.

With a teacher's pieces its token table is right for each token. Both are WordPiece, whose vocabulary can be cut: a word
whose piece is missing is read as shorter ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Core

from anyformer.data import vocabulary
from anyformer.hub.formats.guard import atomic_write
from anyformer.hub.text.tokenizer import Tokenizer

ENDS = ("TemplateProcessing", "BertProcessing")  # that add the tokens around a text


def tokenizers(
    texts: Sequence[str], vocabs: Sequence[int], file: Path, source: Tokenizer | None = None
) -> dict[int | None, Tokenizer]:
    """WordPiece tokenizers of several sizes; a smaller one is the beginning of the largest, so that rows of a token
    table are the same tokens in all. The largest is kept in `file`, since another run would find other tokens.

    Args:
        source: of a teacher, whose pieces they have if it can be cut.
    """
    roles = vocabulary.BERT
    if source is not None and cuttable(source):
        roles = source.roles
        if not file.exists():
            atomic_write(file, json.dumps(cut(source, texts, max(vocabs)), ensure_ascii=False).encode())
    if not file.exists():
        vocabulary.make(texts, "wordpiece", max(vocabs)).core.save(str(file), pretty=False)
    whole = json.loads(file.read_text(encoding="utf-8"))
    made: dict[int | None, Tokenizer] = {}
    for size in vocabs:
        kept = {token: i for token, i in whole["model"]["vocab"].items() if i < size}
        content = {**whole, "model": {**whole["model"], "vocab": kept}}
        made[size] = Tokenizer(Core.from_str(json.dumps(content)), roles)
    return made


def cuttable(tokenizer: Tokenizer) -> bool:
    """True for a WordPiece tokenizer: any part of its vocabulary that has the characters reads all texts."""
    whole = json.loads(tokenizer.core.to_str())
    return whole["model"].get("type") == "WordPiece" and (whole["post_processor"] or {"type": ENDS[0]})["type"] in ENDS


def cut(tokenizer: Tokenizer, texts: Sequence[str], size: int) -> dict[str, Any]:
    """A WordPiece tokenizer's content with the `size` tokens that texts have most: special ones, single characters,
    then pieces of words, those first that the texts have more."""
    whole: dict[str, Any] = json.loads(tokenizer.core.to_str())
    ids, mark = whole["model"]["vocab"], whole["model"]["continuing_subword_prefix"]
    ends = whole["post_processor"] or {}
    template = ends.get("special_tokens", {})
    special = [
        *tokenizer.roles.values(),
        whole["model"]["unk_token"],
        *(t for e in template.values() for t in e["tokens"]),
    ]
    special += [ends[name][0] for name in ("cls", "sep") if name in ends]
    counts = Counter(t for e in tokenizer.core.encode_batch(list(texts), add_special_tokens=False) for t in e.tokens)
    letters = {letter for token in counts for letter in token.removeprefix(mark)}
    single = sorted(t for t in ids if len(bare := t.removeprefix(mark)) == 1 and bare in letters)
    order = sorted((t for t in counts if t in ids), key=lambda t: (-counts[t], ids[t]))
    kept = {t: i for i, t in enumerate([t for t in dict.fromkeys([*special, *single, *order]) if t in ids][:size])}
    whole["model"]["vocab"] = kept
    whole["added_tokens"] = [{**t, "id": kept[t["content"]]} for t in whole["added_tokens"] if t["content"] in kept]
    for one in template.values():
        one["ids"] = [kept[t] for t in one["tokens"]]
    for name in ("cls", "sep"):
        if name in ends:
            ends[name][1] = kept[ends[name][0]]
    return whole
