"""train a small model, chat with a real one, compare sentences, draw attention: five minutes."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from anyformer.cli import models
from anyformer.cli.chat import answer
from anyformer.cli.embed import ranked
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer demo --data book.txt"
QUERY = "What does a young cat need?"
SENTENCES = (
    "Kittens need fresh water and food twice a day.",
    "The veterinarian sees small pets on Mondays.",
    "Dogs like long walks in the forest.",
    "The engine needs oil every ten thousand kilometres.",
    "Interest rates rose again in October.",
)


def demo(
    data: str = "pydoc",
    *,
    steps: int = 600,
    question: str = "What is Paris known for? Answer in one sentence.",
    out: str | None = None,
) -> Path | None:
    """Shows what anyformer does, on real text and real weights.

    1. trains a small GPT from nothing and measures it on text that it has not seen, beside a bigram
    2. chats with SmolLM2-135M-Instruct      3. ranks sentences with MiniLM      4. draws where the answer looked

    Args:
        data: the text to train on: a file, a folder of texts, or pydoc, the English reference inside every CPython.
        steps: of training; the default takes about two minutes on two cores.
        question: for the chat.
        out: where everything goes; by default a new folder, runs/demo-1, runs/demo-2, …

    Returns:
        The picture, or None if the training was stopped (Ctrl-C).
    """
    begun = time.monotonic()
    folder = Path(out) if out else next(p for i in itertools.count(1) if not (p := Path("runs") / f"demo-{i}").exists())
    _say(begun, f"1/4  a small GPT learns from {data}")
    checkpoint = _train(data, steps, folder / "gpt")
    if checkpoint is None:
        return None
    _say(begun, f"2/4  SmolLM2-135M-Instruct answers: {question}")
    model = models.load("smollm2")
    text = answer(model, [{"role": "user", "content": question}], {"max_new_tokens": 80})[-1]["content"]
    _say(begun, f"3/4  MiniLM ranks sentences by likeness to: {QUERY}")
    _rank()
    _say(begun, "4/4  where the answer of step 2 looked")
    picture = _draw(model, question, text, folder / "attention.png")
    _say(begun, f"done; the picture is {picture}. Commands to try next")
    _next(checkpoint)
    return picture


def _train(data: str, steps: int, folder: Path) -> Path | None:
    from anyformer.train import train

    result = train("gpt", data=data, out=folder, steps=steps, warmup=min(100, steps), eval_every=0, save_every=0)
    if result.stopped or result.bits_per_byte is None or result.bigram_bits_per_byte is None:
        print("the demo ends here; `anyformer demo` begins a new one")
        return None
    less = 1 - result.bits_per_byte / result.bigram_bits_per_byte
    verdict = f"{less:.0%} fewer bits than the bigram" if less > 0 else "the bigram is better: try more --steps"
    print(f"{verdict}; the checkpoint opens in anyformer and in transformers")
    return result.checkpoint


def _rank() -> None:
    from anyformer.generate import embed

    model = models.load("minilm")
    vectors = embed(model, [QUERY, *SENTENCES])  # (1 + N, D)
    for score, sentence in ranked(vectors[:1], vectors[1:], list(SENTENCES)):
        print(f"  {score:+.3f}  {sentence}")


def _draw(model: Any, question: str, text: str, path: Path) -> Path:
    from anyformer.explain import attention_picture

    prompt = model.tokenizer.chat_ids([{"role": "user", "content": question}])
    attention_picture(model, prompt, path, answer=text)
    print(f"{path}: rows are the tokens of the answer, columns the tokens before")
    return path


def _next(checkpoint: Path) -> None:
    tips = (
        (
            f'anyformer generate {checkpoint} "The " --temperature 0.8',
            "continue a text with the model that was trained here",
        ),
        ("anyformer chat smollm2", "chat; /exit quits"),
        ("anyformer inspect smollm2", "parameters, memory, recipe, and the use of every tensor of its file"),
        ("anyformer train --data book.txt", "train on your own text"),
        ("anyformer ls", "every architecture, its sizes, real weights by name"),
    )
    for command, what in tips:
        print(f"  {command:<{max(len(c) for c, _ in tips)}}  {what}")


def _say(begun: float, text: str) -> None:
    """A heading, with the time since the beginning."""
    seconds = int(time.monotonic() - begun)
    print(f"\n── {text}  [{seconds // 60}:{seconds % 60:02d}]", flush=True)


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(demo)


def run(args: Any) -> None:
    """Does it."""
    demo(**pick(args, demo))
