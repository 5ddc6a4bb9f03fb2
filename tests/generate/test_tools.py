"""Calls of functions: their form is the template's, they follow the schemas, and the loop ends."""

from __future__ import annotations

import json
import re
import time
from typing import Any, Literal

import pytest

from anyformer.cli import main
from anyformer.generate import chat
from anyformer.generate.calculator import CALCULATOR, calculate
from anyformer.generate.calling import perform, turns
from anyformer.generate.constraining import constraints
from anyformer.generate.options import Options
from anyformer.generate.tools import OWN, Call, Reader, Tool, form_of, grammar, prompt, tools_of
from tests.generate.subjects import reading

pytest.importorskip("llguidance", reason="grammars: left out: llguidance is not installed")
PLAIN = """{% for m in messages %}<{{ m.role }}>{{ m.content }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
# the ways of three families: tags around each call, one bare call, a list behind a special token
TAGS = """{% if tools %}<system>{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}
{% for m in messages %}<{{ m.role }}>{{ m.content }}
{%- for c in m.tool_calls or [] %}{% if not loop.first %}{{ "\\n" }}{% endif %}
{{- "<tool_call>\\n" }}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson -}} }
{{- "\\n</tool_call>" }}{% endfor %}<|endoftext|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
BARE = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}
{%- if m.tool_calls | length > 1 %}{{ raise_exception("one call") }}{% endif %}{% set f = m.tool_calls[0].function %}
{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson -}} }{% else %}{{ m.content }}{% endif %}<|endoftext|>
{%- endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
LIST = """{% for m in messages %}{% if m.role == "user" %}{{ tools | tojson }}[INST]{{ m.content }}[/INST]
{%- elif m.tool_calls %}[CALLS][{% for c in m.tool_calls %}
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson -}} }
{%- if not loop.last %}, {% endif %}{% endfor %}]<|endoftext|>
{%- else %}{{ m.content }}<|endoftext|>{% endif %}{% endfor %}"""
TEMPLATES = pytest.mark.parametrize("template", [TAGS, BARE, LIST, PLAIN], ids=["tags", "bare", "list", "none"])


def model(template: str) -> Any:
    made = reading(401, 2048)
    special = (
        made.tokenizer.with_special(made.tokenizer.vocab_size, "[CALLS]") if "[CALLS]" in template else made.tokenizer
    )
    made.tokenizer = special
    made.tokenizer.template = template
    return made


def add(a: int, unit: Literal["m", "km"], exact: bool = False) -> str:
    """Adds one.

    Args:
        a: the number.
    """
    return f"{a + 1} {unit}"


TOOLS = tools_of([add, CALCULATOR])


def walked(made: Any, text: str, **options: Any) -> bool:
    """True if a text, with its special tokens, follows the grammar to its end."""
    place = constraints(made, Options(9, 0.0, None, None, None, None, (), None, True, **options), 1)[0]
    for token in made.tokenizer.encode(text, special=False):
        if not place.matcher.try_consume_tokens([token]):
            return False
    return bool(place.matcher.is_accepting())


@pytest.mark.parametrize(
    ("template", "begin", "between"),
    [
        (TAGS, '<tool_call>\n{"name": "', '}\n</tool_call>\n<tool_call>\n{"name": "'), (BARE, '{"name": "', None),
        (LIST, '[CALLS][{"name": "', '}, {"name": "'), (PLAIN, OWN.begin, OWN.between), (None, OWN.begin, OWN.between),
    ],
    ids=["tags", "bare", "list", "plain", "none"],
)  # fmt: skip
def test_the_form_of_a_call_is_that_of_the_template(template, begin, between):
    made = model(template or PLAIN)
    made.tokenizer.template = template
    form = form_of(made.tokenizer)
    assert (form.begin, form.between) == (begin, between)
    assert form.native == (template not in (None, PLAIN))


@TEMPLATES
def test_calls_follow_the_schemas_and_are_read_back(template):
    made = model(template)
    form, auto = form_of(made.tokenizer), grammar(made.tokenizer, TOOLS)
    text = f'{form.begin}add{form.middle}{{"a": 7, "unit": "km"}}{form.end}'
    wrong = (text.replace("km", "in"), text.replace("7", "7.5"), text.replace("add", "sub"), text.replace('"a"', '"b"'),
             text.replace('{"a"', '{"c": 1, "a"'), text[:-1])  # fmt: skip
    assert walked(made, text, grammar=auto) and not any(walked(made, t, grammar=auto) for t in wrong)
    assert walked(made, "any text {}", grammar=auto) and walked(made, "", grammar=auto)
    must = grammar(made.tokenizer, TOOLS, "required")
    assert walked(made, text, grammar=must) and not walked(made, "any text", grammar=must)
    seen = text.replace("[CALLS]", "")  # special tokens are no text
    for size in (1, 3, 500):
        reader = Reader(made.tokenizer)
        shown = "".join(reader.put(part) for part in (f"So: {seen}"[i : i + size] for i in range(0, 600, size)))
        rest, calls = reader.end()
        assert shown + rest == "So: " and [(c.name, c.arguments) for c in calls] == [("add", {"a": 7, "unit": "km"})]
    reader = Reader(made.tokenizer)
    assert reader.put(seen[:-20]) + reader.end()[0] == seen[:-20]  # half a call is text


def test_two_calls_in_one_answer():
    made = model(TAGS)
    form = form_of(made.tokenizer)
    calls = [f'add{form.middle}{{"a": {i}, "unit": "m"}}' for i in (1, 2)]
    text = form.begin + (form.between or "").join(calls) + form.end
    assert walked(made, text, grammar=grammar(made.tokenizer, TOOLS))
    assert not walked(made, text, grammar=grammar(made.tokenizer, TOOLS, several=False))
    reader = Reader(made.tokenizer)
    assert reader.put(text) == "" and [c.arguments["a"] for c in reader.end()[1]] == [1, 2]


def test_prompts_have_tools_calls_and_results():
    call = Call("add", {"a": 1, "unit": "m"})
    said = [{"role": "user", "content": "go"}, *turns("", [perform(call, TOOLS, 5)])]
    for template, parts in (
        (TAGS, ['"description": "the number."', '{"a": 1, "unit": "m"}', "<tool>2 m"]),
        (PLAIN, ['"the number."', '<assistant><tool_call>\n{"name": "add"', "<tool_response>\n2 m"]),
    ):
        made = model(template)
        text = made.tokenizer.decode(prompt(made.tokenizer, said, TOOLS), skip_special=False)
        assert all(part in text for part in parts), text
    plain = model(PLAIN)
    assert prompt(plain.tokenizer, said[:1], []) == plain.tokenizer.chat_ids(said[:1])
    plain.tokenizer.template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN
    assert plain.tokenizer.decode(prompt(plain.tokenizer, said[:1], TOOLS)).startswith("<user>You can call")


@TEMPLATES
def test_a_model_calls_functions_until_it_may_no_more(template):
    made, calls = model(template), list[Call]()
    options: dict[str, Any] = {"max_new_tokens": 150, "temperature": 1.0, "seed": 3}
    pieces = chat(made, [{"role": "user", "content": "go"}], tools=TOOLS, tool_choice="required", max_calls=1,
                  on_call=calls.append, **options)  # fmt: skip
    text = "".join(pieces)
    assert len(calls) == 1 and calls[0].name in ("add", "calculator") and calls[0].result is not None
    assert OWN.begin not in text
    if calls[0].name == "add":
        assert calls[0].result == f"{calls[0].arguments['a'] + 1} {calls[0].arguments['unit']}"
    none = list[Call]()
    "".join(chat(made, [{"role": "user", "content": "go"}], tools=TOOLS, tool_choice="required", max_seconds=0,
                 on_call=none.append, **options))  # fmt: skip
    assert not none


def test_results_errors_and_time():
    slow = Tool("slow", run=lambda: time.sleep(30))
    begin = time.monotonic()
    assert perform(Call("slow", {}), [slow], 0.05).result == "error: the function took too long"
    assert time.monotonic() - begin < 5
    assert perform(Call("none", {}), [slow], 1).result == "error: there is no function none"
    assert perform(Call("x", {}), [Tool("x", run=lambda: {"a": [1]})], 1).result == '{"a": [1]}'
    assert perform(Call("calculator", {"expression": "1/0"}), [CALCULATOR], 1).result == "error: division by zero"
    assert json.loads(Call("x", {"é": 1}).spec(text=True)["function"]["arguments"]) == {"é": 1}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2+2", "4"), ("(2 + 3) * sqrt(16)", "20"), ("2^10", "1024"), ("10/4", "2.5"), ("-5//2", "-3"),
        ("10 / 3", "3.33333333333"), ("max(1, 2, 3) - pi", "-0.14159265359"), ("0.1 + 0.2", "0.3"),
        ("2**200", str(2**200)),
    ],
)  # fmt: skip
def test_the_calculator_calculates(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('x')", "(1).__class__", "'a' * 9", "9**9**9", "1e400", "log(0)", "1/0", "(-8)**0.5",
        "x", "", "[1]", "lambda: 1", "1 if 1 else 2", "abs(x=1)", "max()", "(" * 300, "(" * 150, "True", "1j", "round",
    ],
)  # fmt: skip
def test_the_calculator_does_nothing_else(expression):
    with pytest.raises(ValueError):
        calculate(expression)


@pytest.mark.parametrize(
    ("tools", "word"),
    [
        ([lambda x: x], "needs a type"), ([lambda: 1], "letters, digits"), ([3], "a function, a Tool"),
        ([add, add], "different names"),
        ([Tool("t", parameters={"type": "object", "properties": {"a": {"type": "nonsense"}}})], "nonsense"),
    ],
)  # fmt: skip
def test_tools_that_make_no_sense(tools, word):
    with pytest.raises(ValueError, match=word):
        "".join(chat(model(PLAIN), [{"role": "user", "content": "x"}], tools=tools, max_new_tokens=2))
    with pytest.raises(ValueError, match="go without"):
        chat(model(PLAIN), [{"role": "user", "content": "x"}], tools=[add], schema={})
    with pytest.raises(ValueError, match="tool_choice"):
        chat(model(PLAIN), [{"role": "user", "content": "x"}], tools=[add], tool_choice="must")  # type: ignore[arg-type]


def test_the_commands_of_the_document_run(tmp_path, capsys):
    made = model(PLAIN)
    made.save(tmp_path / "model")
    words = ["What is 1234 * 5678?", "--tools", "calculator", "--tool-choice", "required", "--max-new-tokens", "150"]
    assert main(["chat", str(tmp_path / "model"), *words, "--seed", "3", "--temperature", "1"]) == 0
    assert "[calculator(expression='" in capsys.readouterr().out
    assert main(["generate", str(tmp_path / "model"), "List: ", "--grammar", 'start: "a" ("," "b")+']) == 0
    assert re.match(r"List: a(,b)+", capsys.readouterr().out)
    assert main(["chat", str(tmp_path / "model"), "x", "--tools", "shell"]) == 2
    assert "shell is not included; there is calculator" in capsys.readouterr().err
