"""The form of a page: short, with its paper, its difference and its drawing, and no dependence on anybody's library."""

from __future__ import annotations

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

LINES = 120
OUTSIDE = ("transformers", "gguf")  # what the package must not need


@check(0, "page")
def page_is_short(name: str) -> float:
    """A page is at most 120 lines of code: blank lines, comments and the docstring are not counted."""
    module = pages.page(name).module
    code = Path(module.__file__).read_text().replace(module.__doc__ or "", "")
    lines = [line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    expect(len(lines) <= LINES, f"{len(lines)} lines, at most {LINES} are allowed")
    return 0.0


@check(0, "page")
def page_explains_itself(name: str) -> float:
    """Its docstring names the paper, says what differs from a relative, and draws the wiring."""
    text = pages.page(name).module.__doc__ or ""
    expect(bool(re.search(r"\((.|\n)*?(19|20)\d\d(.|\n)*?\)", text)), "the docstring names no paper with its year")
    expect(
        bool(re.search(r"arXiv:\d{4}\.\d{4,5}|\"[^\"]{10,}\"", text)), "the docstring has no arXiv number and no title"
    )
    expect(bool(re.search(r"[Dd]iffers\s+from", text)), "the docstring does not say from what it differs")
    drawing = re.search(r"```\n(.*?)```", text, re.S)
    expect(drawing is not None and len(re.findall(r"[─│┬┴└┘┌┐├┤+|>]", drawing[1])) > 5, "the docstring draws nothing")
    return 0.0


@check(0, "page")
def page_has_its_parts(name: str) -> float:
    """A frozen dataclass, a function of its name, SIZES with `tiny`, PARAMETERS of its sizes, CASES that differ."""
    page = pages.page(name)
    frozen = dataclasses.is_dataclass(page.config) and vars(page.config)["__dataclass_params__"].frozen
    expect(frozen, "its config is no frozen dataclass")
    expect("tiny" in page.sizes, "SIZES has no 'tiny'")
    expect(apart(name) != "", "no map to files of transformers, and no ORACLE that says what is compared instead")
    strangers = set(page.module.PARAMETERS) - set(page.sizes)
    expect(not strangers, f"PARAMETERS has {sorted(strangers)}, which SIZES has not")
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
    """It is built in a process that can import neither transformers nor gguf."""
    why = without_oracle(tuple(pages.names())).get(name, "it was not built")
    expect(not why, f"without transformers: {why}")
    return 0.0


@functools.cache
def without_oracle(names: tuple[str, ...]) -> dict[str, str]:
    """What goes wrong with each page in a process, started once, that has nothing of OUTSIDE; "" = nothing."""
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
