"""talk with a model; with a question, answer it and stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from anyformer.cli import models
from anyformer.cli.options import Parser, pick

EXAMPLE = 'anyformer chat smollm2 "Why is the sky blue?"'
CALL = "anyformer.generate:generate"
# the rest of what `anyformer.generate.generate` takes, `chat` takes as well
OURS = (
    *("model", "prompts", "images", "sounds", "videos", "draft", "steer", "heal"),
    *("num_beams", "length_penalty", "early_stopping"),
)
LONG = {"max_new_tokens": 512}  # an answer may be longer than a continuation
HELP = "type a question; /new starts a new conversation, /exit (or Ctrl-D) quits, Ctrl-C stops an answer"


def chat(
    model: str,
    question: str | None,
    options: dict[str, Any],
    *,
    system: str | None = None,
    draft: str | None = None,
    tools: Sequence[str] = (),
    tool_choice: Literal["auto", "required"] = "auto",
    max_calls: int = 8,
    max_seconds: float = 60.0,
    steer: list[str] | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Answers a question, or without one talks until `/exit`. What was said before is remembered.

    Args:
        model: a directory, a .gguf file, a hub id, or real weights by name; it needs a chat template.
        question: the question, or nothing.
        options: of `anyformer.generate.chat`, by name.
        system: what the model is told before the conversation.
        draft: a smaller model with the same tokens, which guesses several tokens that the model verifies in one pass.
        tools: functions that it can call: calculator, and search=INDEX, a folder that `anyformer index` made. Each call
            is printed.
        tool_choice: required = the first answer to a question is a call.
        max_calls: of an answer.
        max_seconds: of an answer with calls.
        steer: files of directions that `anyformer steer` wrote, FILE or FILE:STRENGTH; they are added at every token.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    options = {**options, "steer": steer}
    if tools:
        from anyformer.know.tool import tools_of_names

        options = {**options, "tools": tools_of_names(tools, "--tools"), "tool_choice": tool_choice,
                   "max_calls": max_calls, "max_seconds": max_seconds}  # fmt: skip
    loaded = models.load(model, task=task, ignore=ignore)
    if draft is not None:
        options = {**options, "draft": models.load(draft)}
    begin: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    if question is not None:
        answer(loaded, [*begin, {"role": "user", "content": question}], options)
        return
    print(HELP)
    messages = list(begin)
    while (typed := _ask()) not in (None, "/exit"):
        if typed == "/new":
            messages = list(begin)
        elif typed:
            messages.append({"role": "user", "content": typed})
            try:
                messages += answer(loaded, messages, options)
            except ValueError as error:  # most likely the conversation has become too long
                messages.pop()
                print(f"{error}\n/new starts a new conversation")


def answer(model: Any, messages: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Prints the model's answer as it is written, with its calls, and returns its messages. Ctrl-C ends the answer, not
    the program."""
    from anyformer.generate import chat as talk
    from anyformer.generate.calling import turns

    text, made = "", list[dict[str, Any]]()

    def called(call: Any) -> None:
        nonlocal text
        shown = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
        print(f"[{call.name}({shown}) = {call.result}]", flush=True)
        made.extend(turns(text, [call]))
        text = ""

    more: dict[str, Any] = {"on_call": called} if options.get("tools") else {}
    try:
        for piece in talk(model, messages, **options, **more):
            print(piece, end="", flush=True)
            text += piece
    except KeyboardInterrupt:
        print(" …", end="")
    print()
    return [*made, {"role": "assistant", "content": text}]


def _ask() -> str | None:
    """The next line, or None at the end of the input."""
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return None


def options(parser: Parser) -> None:
    """The options of the verb: its own, and those of the Python call."""
    parser.add_function(chat, skip=("question", "options"))
    parser.add_argument("question", nargs="*", type=str, help="the question; without one a conversation begins")
    parser.add_function(CALL, skip=OURS, give=LONG)


def run(args: Any) -> None:
    """Does it."""
    asked = " ".join(args.question) or None
    chat(
        args.model, asked, pick(args, CALL, OURS), system=args.system, draft=args.draft, tools=args.tools,
        tool_choice=args.tool_choice, max_calls=args.max_calls, max_seconds=args.max_seconds, steer=args.steer,
        task=args.task, ignore=args.ignore,
    )  # fmt: skip
