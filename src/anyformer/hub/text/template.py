"""Chat templates: Jinja for untrusted templates, run only here.

A template is a program. It gets the sandbox of jinja2, on plain JSON data, without names that start with an
underscore, and with only the filters, functions and methods that chat templates use. The sandbox bounds
neither work nor memory, so limits are added:

- `MAX_WORK`: every string, list and dict that the template makes (literals, `~`, `+`, `*`, calls, filters,
  blocks, output) is charged by its expanded size, in advance where it can be much larger than its parts.
  Doubling a string forty times, or nesting `[x, x]` forty deep, ends here, on every machine at the same step.
- `MAX_SECONDS` of processor time, checked on every line of the template and every call.
- `MAX_TEMPLATE` characters in, `MAX_OUTPUT` out.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from datetime import datetime
from functools import lru_cache, wraps
from types import FrameType
from typing import Any

from anyformer.hub.formats.guard import FileRefused, short

MAX_TEMPLATE = 262_144  # characters; the longest published ones have 60 k
MAX_OUTPUT = 10_000_000  # characters
MAX_WORK = 50_000_000  # characters made in one rendering, with OBJECT for each string, list, dict, item
MAX_SECONDS = 0.5  # of processor time; a rendering takes about a millisecond
MAX_RANGE = 10_000
MAX_BITS = 4096  # of an integer
OBJECT = 50


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILTERS = _words("""
    abs capitalize count d default dictsort e escape first float indent int items join last length list lower map max
    min reject rejectattr replace reverse safe select selectattr sort string title trim unique upper
""")
METHODS = {
    str: _words("""
        capitalize count endswith find index isalnum isalpha isdigit isspace islower isupper join lower lstrip
        partition removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines startswith strip
        title upper
    """),
    dict: _words("get items keys values"),
    list: _words("count index"),
    tuple: _words("count index"),
}
SPLITTING = _words("list map reject rsplit select sort split splitlines unique")  # text to items


class _Spent(BaseException):
    """The signal that a limit was reached; no `except Exception` of a library swallows it."""


_account = threading.local()  # .work left, .deadline: of the rendering in this thread


def render(template: str, variables: dict[str, Any]) -> str:
    """The text of a Jinja chat template with `variables` (plain JSON data: anything else is an error).

    Errors: FileRefused when the template is not Jinja, uses a forbidden name, or reaches a limit; ValueError with
    the template's own message where it calls `raise_exception`, or when it fails on these variables.
    """
    import jinja2

    if len(template) > MAX_TEMPLATE:
        raise FileRefused(f"chat template: at most {MAX_TEMPLATE:,} characters, got {len(template):,}")
    try:
        variables = json.loads(json.dumps(variables))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"chat template: the messages must be plain JSON data: {error}") from None
    _account.work, _account.deadline = MAX_WORK, time.thread_time() + MAX_SECONDS
    tracer = sys.gettrace()
    sys.settrace(_watch)
    try:
        text = _compiled(template).render(variables)
    except _Spent as error:
        raise FileRefused(f"chat template: {error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise FileRefused(f"chat template, line {error.lineno}: {short(error.message or 'not Jinja')}") from None
    except jinja2.exceptions.SecurityError as error:
        raise FileRefused(f"chat template: refused: {short(str(error))}") from None
    except RecursionError:
        raise FileRefused("chat template: nested too deeply") from None
    except Exception as error:  # errors of the template can be of any type
        raise ValueError(f"chat template: {short(str(error))}") from None
    finally:
        sys.settrace(tracer)
    if len(text) > MAX_OUTPUT:
        raise FileRefused(f"chat template: at most {MAX_OUTPUT:,} characters of output, got {len(text):,}")
    return text


def _watch(frame: FrameType, event: str, arg: object) -> Any:
    """Trace function: the clock, on every call, and on every line of a template's own code."""
    if time.thread_time() > _account.deadline:
        raise _Spent(f"more than {MAX_SECONDS} s of work")
    return _watch if frame.f_code.co_filename == "<template>" else None


def _charge(amount: int) -> None:
    _account.work -= amount
    if _account.work < 0:
        raise _Spent(f"more than {MAX_WORK:,} units of text and items made")


def _charged(value: Any) -> Any:
    """`value`, after its expanded size is charged: a shared part counts at each occurrence."""
    stack = [value]
    while stack:
        item = stack.pop()
        _charge(OBJECT + len(item) if isinstance(item, str) else OBJECT)
        if isinstance(item, list | tuple):
            _charge(OBJECT * len(item))
            stack.extend(item)
        elif isinstance(item, dict):
            _charge(OBJECT * len(item))
            stack.extend(item)
            stack.extend(item.values())
    return value


def _charge_growth(name: str, subject: Any, args: tuple[Any, ...]) -> None:
    """Charge in advance the result of the filter or method `name`, if it can be much larger than `subject`."""
    if name in SPLITTING and isinstance(subject, str):
        _charge(OBJECT * len(subject))
    elif name == "replace" and len(args) > 1:
        _charge(str(subject).count(str(args[0])) * len(str(args[1])))
    elif name == "join" and args:
        most = MAX_WORK // OBJECT  # items, of a generator
        _charge(math.prod(len(x) if hasattr(x, "__len__") else most for x in (subject, args[0])))
    elif name == "indent" and args:
        width = args[0] if isinstance(args[0], int) else len(str(args[0]))
        _charge((str(subject).count("\n") + 1) * abs(width))


def _charge_numbers(operator: str, left: Any, right: Any) -> None:
    """Charge in advance the result of `*` and `**`."""
    if operator == "*":
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(other, int):
                _charge(len(one) * max(other, 0) * (1 if isinstance(one, str) else OBJECT))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_BITS:
            raise _Spent(f"integer of more than {MAX_BITS} bits")


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> Any:
    """The sandbox, made on first use (jinja2 is not needed to load a model)."""
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator, Frame
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}` marks the assistant's turns; here it is its body alone."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Charging(CodeGenerator):
        """Compiles literals and `~` into calls of the environment, which charges for their results."""

        def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
            self.write("environment.concat(map(str, ")
            super().visit_Tuple(nodes.Tuple(node.nodes, "load"), frame)
            self.write("))")

        def visit_List(self, node: nodes.List, frame: Frame) -> None:
            self.write("environment.charged(")
            super().visit_List(node, frame)
            self.write(")")

        def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
            self.write("environment.charged(")
            super().visit_Dict(node, frame)
            self.write(")")

        def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
            made = node.ctx == "load"  # else the names that are assigned to
            self.write("environment.charged(" if made else "")
            super().visit_Tuple(node, frame)
            self.write(")" if made else "")

    class Names(Namespace):
        """`namespace(…)`: the one object a template can change, except for Python's own attributes."""

        def __init__(self, **names: Any):
            super().__init__()
            for name, value in names.items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"{name!r} of a namespace")
            super().__setitem__(name, value)

    class Sandbox(ImmutableSandboxedEnvironment):
        code_generator_class = Charging
        intercepted_binops = frozenset(("+", "*", "**", "%"))
        charged = staticmethod(_charged)

        @staticmethod
        def concat(parts: Any) -> str:
            return "".join(_charged(part) for part in parts)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            kind = next((kind for kind in METHODS if isinstance(obj, kind)), None)
            return super().is_safe_attribute(obj, attr, value) and (kind is None or attr in METHODS[kind])

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise SecurityError(f"{attribute!r} of a {type(obj).__name__}")

        def wrap_str_format(self, value: Any) -> None:
            return None  # then `is_safe_attribute` refuses str.format, whose widths are unbounded

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "%" and isinstance(left, str):  # formatting, whose widths are unbounded
                raise SecurityError(f"operator % on {short(left)}")
            _charge_numbers(operator, left, right)
            return _charged(super().call_binop(context, operator, left, right))

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
            owner = getattr(obj, "__self__", None)
            if isinstance(owner, str):
                _charge_growth(obj.__name__, owner, args)
            return _charged(super().call(context, obj, *args, **kwargs))

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[loopcontrols, Generation])
    sandbox.filters = {name: _charging_filter(name, sandbox.filters[name]) for name in FILTERS}
    sandbox.filters["tojson"] = _charging_filter("tojson", _tojson)
    sandbox.globals = {
        "range": _range,
        "namespace": Names,
        "dict": lambda *pairs, **items: dict(*pairs, **items),
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    return sandbox


def _charging_filter(name: str, function: Any) -> Any:
    """The filter, charging for its result; jinja2's marks for "pass the context" are kept by `wraps`."""

    @wraps(function)
    def charging(*args: Any, **kwargs: Any) -> Any:
        subject = 1 if hasattr(function, "jinja_pass_arg") else 0  # after the context or environment
        _charge_growth(name, args[subject], (*args[subject + 1 :], *kwargs.values()))
        return _charged(function(*args, **kwargs))

    return charging


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return "".join(map(_charged, encoder.iterencode(value)))


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_RANGE:
        raise _Spent(f"range of more than {MAX_RANGE:,}")
    return numbers


def _raise_exception(message: str) -> None:
    raise ValueError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern[:100])
