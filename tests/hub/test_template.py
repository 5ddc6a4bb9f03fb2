"""`anyformer.hub.text.template`: what chat templates may do, and that nothing else happens, nor for long."""

import gc
import sys
import time

import pytest

from anyformer.hub.formats.guard import FileRefused
from anyformer.hub.text import template
from anyformer.hub.text.template import render
from tests.hub.texts import CHAT, CHATML


def test_templates_have_what_they_expect():
    variables = {"messages": CHAT, "add_generation_prompt": True}
    for source, want in {
        CHATML: "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }},{% endfor %}{{ ' a '|trim }}": (
            "Hello there,Hi.,a"
        ),
        "{{ {'b': 'é<', 'a': [1, none]}|tojson }}": '{"b": "é<", "a": [1, null]}',
        "{{ {'a': 1}|tojson(indent=2) }}": '{\n  "a": 1\n}',
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}": "3",
        "{% generation %}x{{ 1 }}{% endgeneration %}": "x1",
        "{% macro f(x, y=2) %}{{ x ~ y }}{% endmacro %}{{ f('a') }}{{ f('b', y=[3]) }}": "a2b[3]",
        "{{ messages|map(attribute='role')|join(', ') }}": "user, assistant, user",
        "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}": "2",
        "{{ messages[::-1][0].content.split('+')[1] }}": "2?",
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}": "a1",
        "{{ nothing }}{{ messages[0].nope is defined }}{{ tools is none }}": "FalseTrue",
        "{{ 7 % 3 }}{{ 2 ** 3 }}{{ 'ab' * 2 }}{{ [1] + [2] }}": "18abab[1, 2]",
        "  {%- if true %}\n  x\n  {%- endif %}": "  x",
    }.items():
        assert render(source, {**variables, "tools": None}) == want, source
    year = render("{{ strftime_now('%Y') }}", {})
    assert year == time.strftime("%Y")


def test_templates_speak_for_themselves():
    with pytest.raises(ValueError, match="chat template: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(FileRefused, match="line 3"):
        render("a\n\n{% for %}", {})
    with pytest.raises(ValueError, match="plain JSON data"):
        render("x", {"messages": [object()]})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages['__class__'] }}",
        "{% set x = 'a'.__class__ %}",
        "{{ messages|attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{0.__class__}'.format_map(messages[0]) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ self.__init__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__html__ = 1 %}",
        "{% set ns = namespace() %}{{ ns._Namespace__attrs }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a'|center(1000000000) }}",
        "{{ lipsum(100000) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_templates_that_reach_out_are_refused(source):
    with pytest.raises(ValueError, match="chat template"):
        render(source, {"messages": CHAT})


GROW = "{{% set ns = namespace(x='a') %}}{{% for i in range(60) %}}{{% set ns.x = {} %}}{{% endfor %}}"
BIG = "{% set x = 'a'*1000000 %}"


@pytest.fixture
def little_to_collect():
    """A collection of garbage within a test does not go through all that a long test run has left."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10**9)|list }}",
        GROW.format("ns.x ~ ns.x"),
        GROW.format("ns.x + ns.x"),
        GROW.format("ns.x|replace('a', 'aaa')"),
        GROW.format("[ns.x, ns.x]") + "{{ ns.x }}",
        GROW.format("{'a': ns.x, 'b': ns.x}") + "{{ ns.x|tojson }}",
        GROW.format("dict(a=ns.x, b=ns.x)") + "{{ ns.x }}",
        GROW.format("namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
        GROW.format("(ns.x, ns.x)") + "{{ ns.x == ns.x }}",
        "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ 9 ** 64 ** 64 }}",
        "{{ 'a' * 10**9 }}",
        "{{ [0] * 10**9 }}",
        BIG + "{{ x|replace('a', x) }}",
        BIG + "{{ x.replace('a', x) }}",
        BIG + "{{ x|join(x) }}",
        BIG + "{{ x.join(x|map('upper')) }}",
        "{% set x = '\n'*1000000 %}{{ x|indent(1000000) }}",
        "{% set x = [1]*100000 %}{{ x|tojson(indent=1000000) }}",
        "{% set x = 'a,'*5000000 %}{{ x.split(',') }}",
        BIG + "".join(f"{{% set a{i} = x|upper %}}" for i in range(200)),
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
        "x" * (template.MAX_TEMPLATE + 1),
    ],
)
def test_templates_that_grow_or_never_end_are_stopped(source, monkeypatch, little_to_collect):
    if not source.startswith("{% for"):  # one waits for the limit that users have
        monkeypatch.setattr(template, "MAX_SECONDS", 0.1)
    begin, before = time.thread_time(), sys.gettrace()
    with pytest.raises(FileRefused, match="chat template"):
        render(source, {"messages": CHAT})
    assert time.thread_time() - begin < 1
    assert sys.gettrace() is before
    assert render("{{ messages[0].content }}", {"messages": CHAT}) == "Hello there"  # the next one has its own limits
