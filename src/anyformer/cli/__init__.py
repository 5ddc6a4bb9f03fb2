"""The command line: `anyformer VERB …`, one file a verb, each over one typed function that is also the Python call.

A verb's file has `EXAMPLE`, `options(parser)` and `run(args)`; the first line of its docstring is its summary. What a
verb needs is imported when it runs (its options are read from source, see `signatures`), so that help and mistakes are
answered at once.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType

from anyformer.core.value import nearest

USERS = (ValueError, OSError, ImportError, FloatingPointError)  # what a user can put right; anything else is our defect
VERBS = ("train", "finetune", "align", "federate", "tokenizer", "generate", "chat", "embed", "classify", "tag",
         "detect", "transcribe", "caption", "index", "ask", "answer", "paint", "reconstruct", "compose", "act",
         "forecast",
         "predict", "fold", "serve", "explain", "steer", "inspect", "count", "show", "draw", "diff", "verify",
         "eval", "convert", "compress", "edge", "scale", "plan",
         "ls", "demo")  # fmt: skip
GOALS = (  # (what somebody wants to do, the command)
    ("see it work in five minutes", "anyformer demo"),
    ("chat with a model", "anyformer chat smollm2"),
    ("continue a text", 'anyformer generate smollm2 "The capital of France is"'),
    ("train on your own text", "anyformer train --data book.txt --out runs/book"),
    ("fine-tune on examples", "anyformer finetune --model minilm --data reviews.csv"),
    ("teach which answers are better", "anyformer align dpo smollm2 --data preferences.jsonl"),
    ("learn from data that stay apart", "anyformer federate minilm --clients hospitals"),
    ("name the class of a text", 'anyformer classify runs/reviews "A fine film."'),
    ("label the words of a text", 'anyformer tag runs/names "Ada lives in Turin ."'),
    ("compare texts", 'anyformer embed minilm "A cat." "A car." --query pet'),
    ("find the things in a picture", "anyformer detect street.jpg --out drawn.png"),
    ("write the words of a recording", "anyformer transcribe talk.wav"),
    ("make a picture", 'anyformer paint runs/clothes "ankle boot" --out boot.png'),
    ("write music", 'anyformer compose "a slow waltz" --model musicgen'),
    ("write a sound in few bits", "anyformer reconstruct runs/codec talk.wav"),
    ("write a text about a picture", "anyformer caption MODEL photo.jpg"),
    ("make documents searchable", "anyformer index docs --out idx"),
    ("ask your documents", 'anyformer ask idx "How do I serve a model?"'),
    ("ask about a picture", 'anyformer ask MODEL photo.jpg "What is this?"'),
    ("answer about the objects in pictures", "anyformer answer runs/lxmert questions.jsonl"),
    ("act in an environment", "anyformer act runs/cartpole --env CartPole-v1"),
    ("serve it to browsers and programs", "anyformer serve smollm2"),
    ("forecast a series", "anyformer forecast runs/demand demand.csv --horizon 48"),
    ("judge a molecule", "anyformer predict runs/tpsa molecules.jsonl"),
    ("fold a protein", "anyformer fold runs/folder protein.fasta --out protein.pdb"),
    ("make a tokenizer", "anyformer tokenizer --data book.txt --out tokenizer"),
    ("see why it said that", 'anyformer explain smollm2 "The capital of France is"'),
    ("steer what it writes", "anyformer steer smollm2 --toward glad.txt --away sad.txt"),
    ("inspect a model", "anyformer inspect smollm2"),
    ("show what it sees", "anyformer show runs/clothes boot.png"),
    ("know what it costs", "anyformer count llama --size 7b"),
    ("draw its wiring", "anyformer draw llama --out llama.svg"),
    ("see what differs", "anyformer diff llama qwen2"),
    ("verify a model", "anyformer verify llama"),
    ("measure it on your own questions", "anyformer eval smollm2 questions.jsonl"),
    ("convert files", "anyformer convert smollm2 runs/smollm2"),
    ("make a model smaller", "anyformer compress minilm --to int8 --out runs/small"),
    ("design one for a budget", "anyformer edge --task a.csv --size 3MB --latency 2ms"),
    ("choose size and data", "anyformer scale optimal --flops 1e21"),
    ("plan a large run", "anyformer plan --params 7b --tokens 140b --gpus 64xh100"),
    ("choose a model", "anyformer ls"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `anyformer VERB …`.

    Returns:
        The exit code: 0 done, 1 a check failed, 2 a mistake in what was asked, 130 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no … or emoji shows ?
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview() if args else goals())
        return 0
    if args[0] == "--version":
        from anyformer import __version__

        print(f"anyformer {__version__}")
        return 0
    if args[0] == "--completion":
        return _completion(args[1] if len(args) > 1 else "bash")
    if args[0] not in VERBS:
        near = nearest(args[0], VERBS, 1).strip(" ()")
        print(f"anyformer: {args[0]}: unknown, {near or 'there is ' + ', '.join(VERBS)}", file=sys.stderr)
        print("`anyformer --help` lists the verbs", file=sys.stderr)
        return 2
    return _run(args[0], args[1:])


def goals() -> str:
    """The text of `anyformer` alone: what one may want to do, and the command."""
    width = max(len(goal) for goal, _ in GOALS)
    lines = "\n".join(f"  {goal:<{width}}  {command}" for goal, command in GOALS)
    return f"What do you want to do?\n\n{lines}\n\n`anyformer --help` lists the verbs; VERB --help its options."


def overview() -> str:
    """The text of `anyformer --help`."""
    verbs = "\n".join(f"  {name:<10}  {summary(name)}" for name in VERBS)
    return (
        f"usage: anyformer VERB …\n\nAny transformer, from one set of parts.\n\n{verbs}\n\n"
        "`anyformer VERB --help` shows the options of a verb with types, defaults and an example.\n"
        "MODEL is a Hugging Face directory, the folder of a run, a .gguf file, a hub id (owner/name), or real\n"
        "weights by name; where no weights are needed also an architecture or the file of a recipe. See `anyformer ls`."
    )


def verb(name: str) -> ModuleType:
    """The file of a verb."""
    return importlib.import_module(f"anyformer.cli.{name}")


def summary(name: str) -> str:
    """What a verb does, in one line; its file is read, not run."""
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0].rstrip(".")


def _completion(shell: str) -> int:
    from anyformer.cli.completion import script

    try:
        print(script(shell, {name: summary(name) for name in VERBS}))
    except (ValueError, ImportError) as error:
        print(f"anyformer: {error}", file=sys.stderr)
        return 2
    return 0


def _run(name: str, argv: Sequence[str]) -> int:
    from anyformer.cli.options import Parser

    module = verb(name)
    try:
        parser = Parser(name, summary(name), module.EXAMPLE)
        module.options(parser)
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help, or a mistake that has been explained
        return int(stop.code or 0)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda text, *_, **__: print(f"anyformer {name}: {text}", file=sys.stderr)
            return module.run(args) or 0
    except BrokenPipeError:  # the reader of our output left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"\nanyformer {name}: interrupted", file=sys.stderr)
        return 130
    except USERS as error:
        if args.debug:
            traceback.print_exc()
        print(f"anyformer {name}: {error}", file=sys.stderr)
        return 2
