"""ask your documents, or ask about a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = 'anyformer ask llava-1.5-7b-hf photo.jpg "What is on the table?"'


def ask(
    source: str,
    question: list[str],
    *,
    model: str | None = None,
    k: int | None = None,
    why: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    num_beams: int = 1,
    speculate: Literal["lookup", "layers"] | None = None,
    cache: bool | Literal["int8"] = True,
    seed: int | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the answer: out of an index with its sources, or about a picture as it is written.

    Args:
        source: the folder of an index (`anyformer index`); or a model that sees pictures in its text (LLaVA): a
            directory, the folder of a run, or a hub id.
        question: in quotes; with a model of pictures, the file of a picture and the question.
        model: of an index: what writes the answer: a chat model, or a RAG model, which searches the index itself and
            shows its passages with their probabilities. Without it the answer is made of the documents' sentences.
        k: of an index: passages that are read; 6, of a RAG model its own number.
        why: of an index: print the scores of each passage.
        max_new_tokens: the most tokens of the answer.
        temperature: 0 = always the likeliest token.
        num_beams: above 1, a beam search, of an answer about a picture or of a RAG model.
        speculate: about a picture: guess several tokens and verify them in one pass: the same text. "lookup" guesses
            what followed the same words before, "layers" what the model without every second block writes.
        cache: about a picture: keep keys and values between tokens; "int8" keeps them in 8 bits.
        seed: of the draws.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.know import ask as asked
    from anyformer.know import is_index, opened, written
    from anyformer.know.reader import Passages, Reader
    from anyformer.know.reader import written as replied
    from anyformer.skeletons.retrieving import RagToken

    chosen: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    seen = {"num_beams": num_beams, "speculate": speculate, "cache": cache}
    if not is_index(source):
        _about_picture(source, question, {"model": model, "why": why or None}, chosen | seen, task, ignore)
        return
    if len(question) != 1:
        raise ValueError(f"an index takes one question, in quotes; got {len(question)}: {', '.join(question)[:80]}")
    writer = None if model is None else models.load(model, task=task, ignore=ignore)
    _of_pictures(seen, but="num_beams" if isinstance(writer, RagToken) else None)
    if isinstance(writer, RagToken):
        if temperature or why:
            raise ValueError(
                "temperature and why are for other models: this one takes the likeliest answer and shows why"
            )
        reader = Reader(writer, Passages.of(source), None if k is None else k)
        room = max_new_tokens if writer.context is None else min(max_new_tokens, writer.context - 2)
        print(replied(reader.ask([question[0]], max_new_tokens=room, num_beams=num_beams)[0]))
        return
    searcher = opened(source)
    k = 6 if k is None else k
    answer = asked(searcher, question[0], writer, k=k, **chosen)
    print(written(answer))
    if why:
        print(f"\n{_why(answer)}")


def _of_pictures(given: dict[str, Any], but: str | None) -> None:
    """Raises ValueError for an option that answers out of an index do not have, except `but`."""
    usual = {"num_beams": 1, "speculate": None, "cache": True}
    if extra := [name for name, value in given.items() if value != usual[name] and name != but]:
        raise ValueError(f"--{extra[0].replace('_', '-')} is not for this answer out of an index; leave it out")


def _about_picture(
    source: str,
    words: list[str],
    of_index: dict[str, Any],
    chosen: dict[str, Any],
    task: str | None,
    ignore: Sequence[str],
) -> None:
    """The answer about a picture."""
    from anyformer.generate import ask as answered

    if len(words) != 2:
        raise ValueError(
            f'{source} is not an index (`anyformer index` makes one); about a picture: anyformer ask MODEL PICTURE "…"'
        )
    if extra := [name for name, value in of_index.items() if value is not None]:
        raise ValueError(f"--{extra[0]} is for an index, and {source} is not one; `anyformer index` makes one")
    loaded = models.load(source, task=task, ignore=ignore)
    for piece in answered(loaded, Path(words[0]), words[1], **chosen):
        print(piece, end="", flush=True)
    print()


def _why(answer: Any) -> str:
    """The scores of passages and sentences."""
    found = answer.search
    head = ("", "score", "cosine", "rank", "BM25", "rank", "words", "passage")
    rows = [
        (f"[{n}]", f"{hit.score:.4f}", f"{hit.cosine:.3f}", str(hit.ranks[1] or "-"), f"{hit.bm25:.2f}",
         str(hit.ranks[0] or "-"), f"{hit.share:.0%}", hit.row.place())
        for n, hit in enumerate(found.hits, 1)
    ]  # fmt: skip
    said = [
        (f"[{one.number}]" if one.number else "-", f"words {one.overlap:.0%}", f"cosine {one.cosine:.3f}",
         "" if one.relevance is None else f"relevance {one.relevance:+.1f} nats",
         f"instead of [{one.replaced}]" if one.replaced else "", one.text[:60])
        for one in answer.statements
    ]  # fmt: skip
    cosine, share, bm25 = found.limits
    limits = f"found: a cosine of {cosine:.3f}, or {share:.0%} of the words by rarity with a BM25 of {bm25:.2f}"
    missing = f"\nin no passage: {', '.join(found.unknown)}" if found.unknown else ""
    return "\n".join([limits + missing, plain.table([head, *rows]), *([plain.table(said)] if said else [])])


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(ask)


def run(args: Any) -> None:
    """Does it."""
    ask(**pick(args, ask))
