"""The form of a page: short, with its paper, its difference and its drawing, and no dependence on another library."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

from anyformer.contract.check import check
from anyformer.contract.probe import expect
from anyformer.contract.subjects import apart
from anyformer.core import pages
from anyformer.core.recipe import Recipe

LINES = 80
TABLES = ("SIZES", "PARAMETERS", "CASES", "ORACLE", "HUBS")
OUTSIDE = ("transformers", "gguf")  # packages that anyformer must not need


@check(0, "page")
def page_is_short(name: str) -> float:
    """The readable part of a page, from its docstring to the last function or class above SIZES, is at most 80 lines of
    code (without blank lines, comments and the docstring). The tables below it have any length."""
    module = pages.page(name).module
    text = Path(module.__file__).read_text()
    first, *statements = ast.parse(text).body
    wiring = next(s for s in statements if isinstance(s, ast.FunctionDef) and s.name == name)
    tables = [(target, s.lineno) for s in statements for target in _targets(s) if target in TABLES]
    above = [target for target, line in tables if line < wiring.lineno]
    expect(not above, f"{', '.join(above)} stand above the function {name}; tables stand below")
    sizes = dict(tables)["SIZES"]
    wires = [s for s in statements if s.lineno < sizes and isinstance(s, ast.FunctionDef | ast.ClassDef)]
    read = text.splitlines()[first.end_lineno : wires[-1].end_lineno]
    lines = [line for line in read if line.strip() and not line.lstrip().startswith("#")]
    expect(len(lines) <= LINES, f"{len(lines)} lines are read, at most {LINES} are allowed")
    return 0.0


@check(0, "page")
def page_is_plain(name: str) -> float:
    """Hyperparameters are passed by name; no lambda spans several lines; the formatter is switched off nowhere."""
    module = pages.page(name).module
    text = Path(module.__file__).read_text()
    expect("fmt: " not in text, "a `fmt:` comment: let ruff format the page; one entry a line follows from commas")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Lambda):
            expect(node.lineno == node.end_lineno, f"line {node.lineno}: a lambda over several lines; name a function")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            made = getattr(module, node.func.id, None)
            hyper = dataclasses.is_dataclass(made) and made.__module__ == module.__name__
            expect(not hyper, f"line {node.lineno}: {node.func.id}(…) is given hyperparameters without their names")
    return 0.0


def _targets(statement: ast.stmt) -> list[str]:
    """The names to which a statement assigns."""
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


@check(0, "page")
def page_explains_itself(name: str) -> float:
    """Its docstring names the paper, states the difference from a relative, and draws the wiring."""
    text = pages.page(name).module.__doc__ or ""
    expect(bool(re.search(r"\((.|\n)*?(19|20)\d\d(.|\n)*?\)", text)), "the docstring names no paper with its year")
    expect(
        bool(re.search(r"arXiv:\d{4}\.\d{4,5}|\"[^\"]{10,}\"", text)), "the docstring has no arXiv number and no title"
    )
    expect(bool(re.search(r"[Dd]iffers\s+from", text)), "the docstring does not state what it differs from")
    drawing = re.search(r"```\n(.*?)```", text, re.S)
    expect(drawing is not None and len(re.findall(r"[─│┬┴└┘┌┐├┤+|>]", drawing[1])) > 5, "the docstring draws nothing")
    return 0.0


@check(0, "page")
def page_has_its_parts(name: str) -> float:
    """A frozen dataclass, a function of its name, SIZES with `tiny`, PARAMETERS of each of them, CASES that differ."""
    page = pages.page(name)
    frozen = dataclasses.is_dataclass(page.config) and vars(page.config)["__dataclass_params__"].frozen
    expect(frozen, "its config is no frozen dataclass")
    expect("tiny" in page.sizes, "SIZES has no 'tiny'")
    expect(apart(name) != "", "no map to files of transformers, and no ORACLE that states the comparison instead")
    counts = list(page.module.PARAMETERS)
    expect(counts == list(page.sizes), f"PARAMETERS counts {counts}, and SIZES has {list(page.sizes)}, in this order")
    expect(isinstance(page.recipe(page.at("tiny")), Recipe), f"{name}(config) is no recipe")
    for case, changes in page.module.CASES.items():
        expect(page.at("tiny", **changes) != page.at("tiny"), f"the case {case!r} is `tiny`")
    expect(
        len({page.at("tiny", **c) for c in page.module.CASES.values()}) == len(page.module.CASES),
        "two cases are the same",
    )
    return 0.0


@check(0, "page")
def page_needs_no_oracle(name: str) -> float:
    """It builds in a process that can import neither transformers nor gguf."""
    why = without_oracle(tuple(pages.names())).get(name, "it was not built")
    expect(not why, f"without transformers: {why}")
    return 0.0


@functools.cache
def without_oracle(names: tuple[str, ...]) -> dict[str, str]:
    """The error of each page in a process, started once, without the packages of OUTSIDE; "" = none."""
    code = (
        "import json, sys, traceback\n"
        f"sys.modules.update(dict.fromkeys({OUTSIDE!r}))\n"
        "import anyformer as af\n"
        "found = {}\n"
        f"for name in {list(names)!r}:\n"
        "    try:\n"
        "        af.build(name, 'tiny')\n"
        "        found[name] = ''\n"
        "    except BaseException as error:\n"
        "        found[name] = repr(error)\n"
        "print(json.dumps(found))\n"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    return json.loads(done.stdout.splitlines()[-1]) if not done.returncode else dict.fromkeys(names, done.stderr[-300:])
