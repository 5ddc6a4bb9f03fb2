"""Functions that a model can call: their schemas, the form of a call in its text, and calls that are read out of it.

```
tools ── chat template ── prompt ── text that follows the grammar of calls ── content, calls ── results ── prompt …
```
The form of a call is that of the tokenizer's chat template, found by rendering a conversation with a call in it. A
template without tools gets this one, with the functions in the system message:

    <tool_call>
    {"name": NAME, "arguments": {…}}
    </tool_call>
"""

from __future__ import annotations

import inspect
import json
import re
import secrets
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser

from anyformer.generate.constraining import SPACING

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MANY = 128  # tools of one conversation
TOGETHER = 8  # calls of one answer
KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True)
class Tool:
    """A function that a model can call.

    Attributes:
        name: letters, digits, `_` and `-`. description: for the model.
        parameters: the JSON schema of its arguments, an object. Only arguments that it names are written.
        run: the function, called with the arguments by name; None = the caller of the model calls it.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    run: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the name of a tool has 1 to 64 letters, digits, _ and -; got {self.name!r:.80}")
        if not isinstance(self.parameters, Mapping) or self.parameters.get("type") != "object":
            raise ValueError(
                f"tool {self.name}: parameters must be a JSON schema of type object; got {self.parameters!r:.80}"
            )

    def spec(self) -> dict[str, Any]:
        """The tool in OpenAI's form, which chat templates read."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Call:
    """A call that a model wrote.

    Attributes:
        result: the text that goes back to the model; None if nobody called the function.
    """

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=lambda: secrets.token_hex(5)[:9])  # nine characters, as Mistral's templates ask
    result: str | None = None

    def spec(self, text: bool = False) -> dict[str, Any]:
        """The call in OpenAI's form: arguments as JSON text; by default as an object, which chat templates read."""
        arguments: Any = json.dumps(self.arguments, ensure_ascii=False) if text else self.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


def tools_of(values: Sequence[Any]) -> list[Tool]:
    """Tools from tools, functions, and OpenAI's dicts (`{"type": "function", "function": {…}}`).

    Raises:
        ValueError: for anything else, two of a name, or an argument of a function without a type that JSON has.
    """
    made = [_tool(value) for value in values]
    names = [tool.name for tool in made]
    if len(set(names)) < len(names) or len(names) > MANY:
        raise ValueError(f"tools must have different names, and be at most {MANY}; got {', '.join(names)[:200]}")
    return made


def _tool(value: Any) -> Tool:
    if isinstance(value, Tool):
        return value
    if isinstance(value, Mapping) and isinstance(function := value.get("function"), Mapping):
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        return Tool(str(function.get("name")), str(function.get("description") or ""), schema)
    if callable(value) and hasattr(value, "__name__"):
        return _of_function(value)
    raise ValueError(f"a tool is a function, a Tool, or a dict with a function; got {value!r:.80}")


def _of_function(function: Callable[..., Any]) -> Tool:
    """A tool from the types and the docstring of a function."""
    doc = docstring_parser.google.parse(inspect.getdoc(function) or "")
    told, hints = {p.arg_name: p.description for p in doc.params}, get_type_hints(function)
    properties: dict[str, Any] = {}
    needed = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ValueError(f"tool {function.__name__}: {name} cannot be passed by name")
        properties[name] = _schema(hints.get(name), f"tool {function.__name__}, argument {name}")
        if told.get(name):
            properties[name]["description"] = told[name]
        if parameter.default is parameter.empty:
            needed.append(name)
    schema = {"type": "object", "properties": properties, "required": needed}
    return Tool(function.__name__, doc.short_description or "", schema, function)


def _schema(kind: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type."""
    if kind in KINDS:
        return {"type": KINDS[kind]}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) in (list, Sequence) and get_args(kind):
        return {"type": "array", "items": _schema(get_args(kind)[0], where)}
    if get_origin(kind) in (Union, types.UnionType):
        some = [k for k in get_args(kind) if k is not type(None)]
        if len(some) == 1:
            return _schema(some[0], where)
    raise ValueError(f"{where}: needs a type of {', '.join(k.__name__ for k in KINDS)}, Literal or list; got {kind}")


@dataclass(frozen=True)
class Form:
    """The text around calls: `begin NAME middle ARGUMENTS (between NAME middle ARGUMENTS …) end`.

    Attributes:
        between: None = an answer has one call.
        native: the template writes it itself, and reads tools and results.
    """

    begin: str
    middle: str
    between: str | None
    end: str
    native: bool


OWN = Form('<tool_call>\n{"name": "', '", "arguments": ', '}\n</tool_call>\n<tool_call>\n{"name": "',
           "}\n</tool_call>", False)  # fmt: skip


def form_of(tokenizer: Any) -> Form:
    """The form of calls of a tokenizer's chat template; our own where the template has none."""
    if tokenizer.template is None:
        return OWN
    ends = tuple(tokenizer.core.id_to_token(i) for i in sorted(tokenizer.eos_ids))
    return _form(tokenizer.template, tuple(sorted(tokenizer.roles.items())), ends)


@lru_cache(maxsize=32)
def _form(template: str, roles: tuple[tuple[str, str], ...], ends: tuple[str, ...]) -> Form:
    from anyformer.hub.text.template import render

    probe = Tool("zqtool", "zqdescription", {"type": "object", "properties": {"zqarg": {"type": "integer"}}})
    question = {"role": "user", "content": "zq"}

    def shown(*more: dict[str, Any], prompt: bool = False) -> str:
        variables = {"tools": [probe.spec()], "documents": None, "add_generation_prompt": prompt}
        return render(template, {**dict(roles), **variables, "messages": [question, *more]})

    def turn(names: Sequence[str]) -> dict[str, Any]:
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [Call(n, {"zqarg": 7}, "zqid00000").spec() for n in names],
        }

    try:
        head = shown(prompt=True)
        one, plain = shown(turn(["zqname"])), shown({"role": "assistant", "content": "zqtext"})
    except ValueError:
        return OWN
    found = re.fullmatch(r'(.*?)zqname(.*?)\{\s*"zqarg":\s*7\s*\}(.*)', one.removeprefix(head), re.DOTALL)
    if found is None or not one.startswith(head) or "zqdescription" not in head or not re.search(r"\S", found[1]):
        return OWN
    before, _, behind = plain.removeprefix(head).rpartition("zqtext")  # of any answer: an empty thought, its end
    begin, middle, end = found.groups()
    begin, end = begin.removeprefix(before), end.removesuffix(behind)
    cuts = [end.index(mark) for mark in ends if mark in end]
    end = end[: min(cuts)] if cuts else end
    try:
        two = shown(turn(["zqname", "zqname"])).removeprefix(head)
    except ValueError:
        two = ""
    more = re.fullmatch(r'.*?zqname.*?\{\s*"zqarg":\s*7\s*\}(.*?)zqname.*', two, re.DOTALL)
    return Form(begin, middle, more[1] if more else None, end, True)


def prompt(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[int]:
    """The token ids of a conversation with tools; its messages can have `tool_calls`, and the role "tool".

    Raises:
        ValueError: as `Tokenizer.chat`.
    """
    plain = [{**m, "content": m.get("content") or ""} for m in messages]
    plain = [{**m, "content": as_letters(tokenizer, m["content"])} if m["role"] == "tool" else m for m in plain]
    form = form_of(tokenizer)
    if form.native:
        return tokenizer.chat_ids(plain, tools=[tool.spec() for tool in tools] or None)
    used = any(m.get("tool_calls") or m.get("role") == "tool" for m in plain)
    if not tools and not used:
        return tokenizer.chat_ids(plain)
    plain = _told([_plain(m, form) for m in plain], tools)
    try:
        return tokenizer.chat_ids(plain)
    except ValueError:  # a template without a system message
        if plain[0]["role"] != "system" or len(plain) < 2:
            raise
        first = {**plain[1], "content": f"{plain[0]['content']}\n\n{plain[1]['content']}"}
        return tokenizer.chat_ids([first, *plain[2:]])


def _plain(message: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """A message without calls and results, which are written into its text."""
    content = message["content"]
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if calls := message.get("tool_calls"):
        texts = [f"{c['function']['name']}{form.middle}{json.dumps(c['function']['arguments'], ensure_ascii=False)}"
                 for c in calls]  # fmt: skip
        content += form.begin + (form.between or "").join(texts) + form.end
    return {"role": message["role"], "content": content}


def _told(messages: list[dict[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The messages with the functions in the system message; results that follow one another are one message."""
    made: list[dict[str, Any]] = []
    for message in messages:
        if made and message["role"] == made[-1]["role"] == "user":
            made[-1] = {"role": "user", "content": f"{made[-1]['content']}\n{message['content']}"}
        else:
            made.append(message)
    if not tools:
        return made
    lines = "\n".join(json.dumps(tool.spec()["function"], ensure_ascii=False) for tool in tools)
    told = (
        "You can call functions. To call one, write only\n"
        f"{OWN.begin}NAME{OWN.middle}{{…}}{OWN.end}\n"
        f"and wait: its result comes in the next message. The functions, with the schemas of their arguments:\n{lines}"
    )
    system = made[0]["content"] if made and made[0]["role"] == "system" else ""
    rest = made[1:] if system else made
    return [{"role": "system", "content": f"{system}\n\n{told}".strip()}, *rest]


def grammar(tokenizer: Any, tools: Sequence[Tool], choice: str = "auto", several: bool = True) -> str:
    """The grammar of answers, in llguidance's form of Lark.

    Args:
        choice: "auto" = a text, calls behind it, or both; "required" = calls alone.
        several: more than one call in an answer, where the template has a form for it.
    """
    form, special = form_of(tokenizer), _special(tokenizer)
    count = TOGETHER - 1 if several and form.between is not None else 0
    lines = [f"a{i}: %json {json.dumps(_strict(tool))}" for i, tool in enumerate(tools)]
    each = " | ".join(f"{json.dumps(tool.name)} {_literal(form.middle, special)} a{i}" for i, tool in enumerate(tools))
    lines += [f"one: {each}"]
    more = f"({_literal(form.between or '', special)} one){{0,{count}}}" if count else ""
    mark = next((s for s in special if form.begin.startswith(s)), "")
    if mark:
        mark, head = mark, f"TEXT? {_literal(mark, special)}"
        text = "TEXT: /(?s:.+)/"
    else:
        mark = (re.match(r"[^\s{\[]+", form.begin) or re.match("(?s:.*)", form.begin))[0]  # type: ignore[index]
        head = "head"
        lines.append(f"head[suffix={json.dumps(mark)}]: /(?s:.*)/")
        text = f"TEXT: /(?s:.+)/ & ~/(?s:.*){_escaped(mark)}(?s:.*)/"
    calls = f"{_literal(form.begin[len(mark) :], special)} one {more} {_literal(form.end, special)}"
    if choice == "required":
        return "\n".join(
            [f"start: {_literal(mark, special)} {calls}", *(ln for ln in lines if not ln.startswith("head"))]
        )
    return "\n".join([f"start: {head} {calls} | TEXT?", text, *lines])


def _strict(tool: Tool) -> dict[str, Any]:
    """The schema of the arguments: none but those that it names."""
    spacing = {"x-guidance": SPACING}
    return {"additionalProperties": False, **tool.parameters, **spacing}


def _special(tokenizer: Any) -> dict[str, int]:
    """The special tokens, which text cannot spell, the longest first."""
    added = tokenizer.core.get_added_tokens_decoder()
    found = {token.content: i for i, token in added.items() if token.special}
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


def as_letters(tokenizer: Any, text: str) -> str:
    """A text that came from somewhere, in which no special token of the tokenizer is spelt: a space breaks each."""
    special = [token for token in _special(tokenizer) if len(token) > 1]
    while found := next((token for token in special if token in text), None):
        text = text.replace(found, f"{found[0]} {found[1:]}")
    return text


def _literal(text: str, special: Mapping[str, int]) -> str:
    """A text in a grammar, its special tokens as tokens."""
    if not text:
        return ""
    if not special:
        return json.dumps(text)
    parts = re.split(f"({'|'.join(map(re.escape, special))})", text)
    return " ".join(f"<[{special[p]}]>" if p in special else json.dumps(p) for p in parts if p)


def _escaped(text: str) -> str:
    """A text in a regular expression of a grammar."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


class Reader:
    """Calls in a text that comes in pieces: text that could begin a call is held back.

    Args:
        tokenizer: its special tokens are no part of the text.
        calls: false = the text has none.
    """

    def __init__(self, tokenizer: Any, calls: bool = True):
        form, special = form_of(tokenizer), _special(tokenizer)

        def seen(text: str) -> str:
            return re.sub("|".join(map(re.escape, special)), "", text) if special else text

        self.begin, self.middle, self.end_ = seen(form.begin), seen(form.middle), seen(form.end)
        self.between = None if form.between is None else seen(form.between)
        self.calls, self.held = calls, ""

    def put(self, text: str) -> str:
        """The content of the text so far that was not returned before."""
        if not self.calls:
            return text
        self.held += text
        at = self.held.find(self.begin)
        if at < 0:
            tails = range(max(0, len(self.held) - len(self.begin) + 1), len(self.held))
            at = next((i for i in tails if self.begin.startswith(self.held[i:])), len(self.held))
        given, self.held = self.held[:at], self.held[at:]
        return given

    def end(self) -> tuple[str, list[Call]]:
        """The rest of the content, and the calls; a call that is not complete is content."""
        calls = self._read(self.held) if self.held.startswith(self.begin) else []
        rest = "" if calls else self.held
        self.held = ""
        return rest, calls

    def _read(self, text: str) -> list[Call]:
        """The calls of a text, as far as they are complete."""
        made, at, decoder = list[Call](), len(self.begin), json.JSONDecoder()
        while True:
            name = NAME.match(text, at)
            if name is None or not text.startswith(self.middle, name.end()):
                return made
            try:
                arguments, at = decoder.raw_decode(text, name.end() + len(self.middle))
            except ValueError:
                return made
            if not isinstance(arguments, dict):
                return made
            made.append(Call(name[0], arguments))
            if self.between is None or not text.startswith(self.between, at):
                return made
            at += len(self.between)
