"""make a tokenizer from text: byte-level BPE, characters, WordPiece or Unigram."""

from __future__ import annotations

from typing import Any

from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer tokenizer --data book.txt --out tokenizer --kind bpe --vocab 4096"
CALL = "anyformer.data.vocabulary:train_tokenizer"


def options(parser: Parser) -> None:
    """The options of the verb are those of the Python call, `anyformer.data.vocabulary.train_tokenizer`."""
    parser.add_function(CALL)


def run(args: Any) -> None:
    """Does it, and shows what it made of a sentence."""
    from anyformer.data.vocabulary import train_tokenizer

    tokenizer = train_tokenizer(**pick(args, CALL))
    sentence = "The quick brown fox jumps over the lazy dog."
    ids = tokenizer.encode(sentence, special=False)
    count = tokenizer.vocab_size
    print(f"wrote {args.out}: {count} tokens; a sentence of {len(sentence)} letters takes {len(ids)} of them:")
    print(" ".join(repr(tokenizer.decode([i])) for i in ids))
