"""A calculator that models can call: numbers, + - * / // % **, parentheses and a few functions; nothing else is run."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from anyformer.generate.tools import Tool

LONGEST = 256  # characters of an expression
BITS = 4096  # of a whole number
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "ceil": math.ceil, "cos": math.cos, "exp": math.exp, "floor": math.floor, "log": math.log,
    "log10": math.log10, "max": max, "min": min, "round": round, "sin": math.sin, "sqrt": math.sqrt, "tan": math.tan,
}  # fmt: skip
NAMES = {"pi": math.pi, "e": math.e}
KNOWN = "|".join((*FUNCTIONS, *NAMES))
WRITTEN = rf"^([0-9(-]|{KNOWN})([0-9 (),.+*/%^-]|{KNOWN}){{0,64}}$"  # all that a model can write


def calculate(expression: str) -> str:
    """The value of an expression such as `(2 + 3) * sqrt(16)`.

    Args:
        expression: arithmetic; ^ is a power, as ** is.

    Raises:
        ValueError: for anything else, and for values that are too large or undefined.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters, at most {LONGEST}")
    try:
        tree = ast.parse(expression.strip().replace("^", "**").replace("×", "*").replace("÷", "/"), mode="eval")
        value = _value(tree.body)
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"not arithmetic: {expression!r}") from None
    except (ZeroDivisionError, OverflowError, TypeError) as error:
        raise ValueError(str(error)) from None
    if isinstance(value, float) and math.isfinite(value):
        value = float(f"{value:.12g}")
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(_bounded(value))


def _value(node: ast.expr) -> Any:
    """The value of a part of the tree."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name) and node.id in NAMES:
        return NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left), _value(node.right)
        whole = isinstance(node.op, ast.Pow) and isinstance(left, int) and isinstance(right, int)
        if whole and max(left.bit_length(), 1) * abs(right) > BITS:
            raise ValueError(f"a whole number of more than {BITS} bits")
        return _bounded(OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.Call) and _name(node) in FUNCTIONS and not node.keywords:
        return _bounded(FUNCTIONS[_name(node)](*map(_value, node.args)))
    raise ValueError("only numbers, + - * / // % **, parentheses, pi, e and " + ", ".join(FUNCTIONS))


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _bounded(value: Any) -> Any:
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("the value is no finite real number")
    if isinstance(value, int) and value.bit_length() > BITS:
        raise ValueError(f"a whole number of more than {BITS} bits")
    return value


CALCULATOR = Tool(
    "calculator",
    "Computes the value of an arithmetic expression, such as (2 + 3) * sqrt(16).",
    {
        "type": "object",
        "properties": {"expression": {"type": "string", "pattern": WRITTEN, "description": "the expression"}},
        "required": ["expression"],
    },
    calculate,
)
INCLUDED = {CALCULATOR.name: CALCULATOR}


def included(names: Sequence[str], option: str = "tools") -> list[Tool]:
    """The included tools of these names.

    Raises:
        ValueError: for another name, with the option that holds it.
    """
    if unknown := [name for name in names if name not in INCLUDED]:
        raise ValueError(f"{option}: {unknown[0]} is not included; there is {', '.join(INCLUDED)}")
    return [INCLUDED[name] for name in names]
