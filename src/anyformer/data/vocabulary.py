"""Tokenizers made from text: byte-level BPE, characters, WordPiece, Unigram; one function, which is also the command.

| kind | tokens are | lost | by |
|---|---|---|---|
| bpe | runs of bytes | nothing: decoding restores any text | GPT-2, RoBERTa, LLaMA 3 |
| chars | characters | characters that the text did not have | small experiments, proteins |
| wordpiece | words and their ends (##s) | the same; case, accents, spaces between words | BERT |
| unigram | pieces of words, the likeliest cut | characters that the text did not have | T5, ALBERT |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Core

from anyformer.data import corpus, records
from anyformer.hub.text import letters as spoken
from anyformer.hub.text.tokenizer import END, Tokenizer

Kind = Literal["bpe", "chars", "wordpiece", "unigram"]
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
T5 = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
CHARS = {"bos_token": END, "eos_token": END, "pad_token": END, "unk_token": "<unk>"}


def make(texts: Iterable[str], kind: Kind = "bpe", vocab: int = 8192, special: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of at most `vocab` tokens, special ones included.

    The same texts give the same bpe and chars; for wordpiece and unigram, `tokenizers` sums in another order each time,
    so ids, and a few tokens of equal score, differ between runs.

    Args:
        special: tokens of your own, e.g. `<|im_start|>`, in addition to those of the kind (end, padding, mask …).

    Raises:
        ValueError: for an unknown kind, special tokens that are empty or repeated, a vocabulary too small for them
            (bpe: 256 bytes; chars, unigram: the characters of the text), or no text.
    """
    if kind not in MAKERS:
        raise ValueError(f"kind must be one of {', '.join(MAKERS)}, got {kind!r}")
    if "" in special or len(set(special)) < len(special):
        raise ValueError(f"special tokens must not be empty or come twice, got {', '.join(map(repr, special))}")
    tokenizer = MAKERS[kind](lines(texts), vocab, list(special))
    if tokenizer.vocab_size > vocab:
        raise _small(vocab, str(tokenizer.vocab_size))
    return tokenizer


def letters(texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of a model that spells what is said: a token for each letter of the texts, `|` for spaces, and
    `<pad>`, id 0, for the blank of a CTC head. Saved as `vocab.json` of `Wav2Vec2CTCTokenizer`."""
    found = sorted({letter for text in texts for letter in text if not letter.isspace()})
    marks = [*spoken.ROLES.values(), "|"]
    marks = ["<pad>", *(mark for mark in marks if mark != "<pad>")]
    config = {"tokenizer_class": spoken.KIND, spoken.BETWEEN: "|", "replace_word_delimiter_char": " "}
    vocabulary = {token: i for i, token in enumerate([*marks, *(f for f in found if f != "|")])}
    return Tokenizer(spoken.made(vocabulary, config), spoken.ROLES, config={**config, "do_lower_case": False})


def _small(vocab: int, least: str) -> ValueError:
    return ValueError(
        f"vocab={vocab} is too small: the characters of the text and the special tokens alone are {least}; use at "
        "least that, or kind='bpe', which needs 257"
    )


def lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines with their ends, several ends together: training on lines is faster than on one long text."""
    for text in texts:
        yield from re.findall(r"[^\n]*\n+|[^\n]+", text)


def _bpe(texts: Iterable[str], vocab: int, special: list[str]) -> Tokenizer:
    return Tokenizer.train_bpe(texts, vocab, special)


def _chars(texts: Iterable[str], vocab: int, special: list[str]) -> Tokenizer:
    core = Core(models.WordLevel(unk_token=CHARS["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        vocab_size=1 << 31, special_tokens=[END, CHARS["unk_token"], *special], show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return Tokenizer(core, CHARS)


def _wordpiece(texts: Iterable[str], vocab: int, special: list[str]) -> Tokenizer:
    core = Core(models.WordPiece(unk_token=BERT["unk_token"]))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab, special_tokens=[*BERT.values(), *special], show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    ends = [(BERT[role], core.token_to_id(BERT[role])) for role in ("cls_token", "sep_token")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return Tokenizer(core, BERT)


def _unigram(texts: Iterable[str], vocab: int, special: list[str]) -> Tokenizer:
    core = Core(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab, special_tokens=[*T5.values(), *special], unk_token=T5["unk_token"], show_progress=False
    )
    try:
        core.train_from_iterator(texts, trainer)
    except Exception as error:  # the Rust side raises no other type
        if "contain all chars" not in str(error):
            raise
        raise _small(vocab, "more") from None
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", core.token_to_id("</s>"))]
    )
    return Tokenizer(core, T5)


MAKERS = {"bpe": _bpe, "chars": _chars, "wordpiece": _wordpiece, "unigram": _unigram}


def train_tokenizer(
    data: str | Path | dict[str, float] = "pydoc",
    out: str | Path = "tokenizer",
    kind: Kind = "bpe",
    vocab: int = 8192,
    special: list[str] | None = None,
    fields: dict[str, str] | None = None,
) -> Tokenizer:
    """Makes a tokenizer from text and writes it; `anyformer train --tokenizer OUT` and `transformers` read it.

    The beginning of the text is used, at most 50 million characters of all sources together.

    Args:
        data: a text file, a folder, JSONL, CSV, Parquet, hub:owner/name, or pydoc; see `anyformer train`.
        out: the folder to write.
        kind: bpe: bytes, loses nothing (GPT-2); chars: characters; wordpiece: words and their ends, in lower case
            (BERT); unigram: the likeliest pieces (T5).
        vocab: maximum number of tokens.
        special: tokens of your own beside those of the kind, e.g. --special '<|im_start|>' '<|im_end|>'.
        fields: the column of the text, if it has another name: --fields.text content.

    Returns:
        The tokenizer.

    Raises:
        ValueError: see `make`; for data that cannot be read, and for a folder that has another tokenizer.
    """
    if Tokenizer.exists(out):
        raise ValueError(f"{out} has a tokenizer already, which is not overwritten; choose another folder")
    sources = list(corpus.weights(data))
    each = corpus.TOKENIZER_CHARACTERS // len(sources)
    pieces = (t for name in sources for t in corpus.beginning((t for _, t in records.texts(name, fields)), each))
    tokenizer = make(pieces, kind, vocab, special or ())
    tokenizer.save(out)
    return tokenizer
