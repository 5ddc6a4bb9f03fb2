"""Principles of a constitution, and their judges: a regular expression, a program, or the model itself.

```yaml
- name: short
  text: The answer has at most 40 words.     # what a model that criticises and revises reads
  program: judges.py:too_long                # a function of the text: 0 = kept, above 0 = broken, by how much
- {name: calm, text: The answer has no exclamation mark., forbid: "!"}       # broken by each match
- {name: sourced, text: The answer ends with its source., require: "Source: .*$"}
- The answer is polite.                      # no judge: the model is its own critic
```
A program is code of the user's and runs with the user's rights: read somebody else's first. It runs in a process of
its own, in its folder, with the texts on its standard input and a time limit, so that an error, an endless loop or a
`print` of it is named and does no harm to the run; it is no sandbox.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from anyformer.core.value import nearest
from anyformer.hub.formats.guard import read_bytes

KEYS, JUDGES = ("name", "text", "program", "forbid", "require"), ("program", "forbid", "require")
SECONDS = 60.0  # of a program, for all texts of a call
MOST = 1 << 20  # bytes of a file
RUNNER = """
import importlib.util, json, os, sys
out = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
spec = importlib.util.spec_from_file_location("judge", sys.argv[1])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
judge, made = getattr(module, sys.argv[2]), []
for text in json.load(sys.stdin):
    try:
        value = judge(text)
        made.append([float(value)] if hasattr(value, "__float__") else f"returned {value!r:.60}, which is no number")
    except Exception as error:
        made.append(f"raised {type(error).__name__}: {error}")
json.dump(made, out); out.flush()
"""


@dataclass(frozen=True)
class Principle:
    """A principle.

    Attributes:
        judge: "program", "forbid", "require" or "model". rule: the expression, or file:function.
        content: SHA-256 of the program's file.
    """

    name: str
    text: str
    judge: str = "model"
    rule: str = ""
    content: str = ""

    def scores(self, texts: Sequence[str]) -> list[float]:
        """The amount by which each text breaks it, 0 = kept; not of the model's judgement.

        Raises:
            ValueError: for a program that raises, returns no number, or does not end in time.
        """
        if self.judge == "program":
            return self._run(list(texts))
        found = [len(re.findall(self.rule, text, re.M)) for text in texts]
        return [float(n) if self.judge == "forbid" else float(n == 0) for n in found]

    def _run(self, texts: list[str]) -> list[float]:
        file, _, function = self.rule.rpartition(":")
        called = f"principle {self.name!r}: {self.rule}"
        try:
            done = subprocess.run(
                [sys.executable, "-c", RUNNER, file, function], input=json.dumps(texts), capture_output=True, text=True,
                timeout=SECONDS, cwd=Path(file).parent, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ValueError(f"{called} did not end within {SECONDS:.0f} s for {len(texts)} texts") from None
        if done.returncode:
            raise ValueError(f"{called} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        made = json.loads(done.stdout)
        for text, value in zip(texts, made, strict=True):
            if isinstance(value, str) or not math.isfinite(value[0]):
                said = value if isinstance(value, str) else f"returned {value[0]}, which is no number"
                raise ValueError(f"{called} {said}, for the text {text!r:.60}")
        return [value[0] for value in made]


def read(file: str | Path) -> list[Principle]:
    """The principles of a YAML file; each judge is tried on a text.

    Raises:
        ValueError: naming the principle, for one that is empty, an unknown key, two judges, a name that comes twice, an
            expression that is none, a program that fails. OSError: without the file.
    """
    path = Path(file).expanduser()
    try:
        rows = yaml.safe_load(read_bytes(path, MOST).decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no principle; it is a list, e.g. - {{name: calm, text: …, forbid: '!'}}")
    made = [_principle(row, f"{path}, principle {n}", n, path.parent) for n, row in enumerate(rows, 1)]
    names = [one.name for one in made]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: the name {max(names, key=names.count)!r} comes twice")
    for one in made:
        if one.judge != "model":
            one.scores(["A text."])
    return made


def _principle(row: Any, where: str, number: int, home: Path) -> Principle:
    row = {"text": row} if isinstance(row, str) else row
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise ValueError(f"{where} is empty: it needs a text, which a model can read; got {row!r:.60}")
    if unknown := [str(key) for key in row if key not in KEYS]:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}{nearest(unknown[0], KEYS, 1)}; there is {', '.join(KEYS)}"
        )
    judges = [key for key in JUDGES if key in row]
    if len(judges) > 1:
        raise ValueError(f"{where} has two judges, {' and '.join(judges)}; make it two principles")
    name, text = str(row.get("name", f"principle {number}")), row["text"].strip()
    if not judges:
        return Principle(name, text)
    judge, rule = judges[0], str(row[judges[0]])
    if judge != "program":
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(f"{where}: {judge} is no regular expression: {error}: {rule!r:.60}") from None
        return Principle(name, text, judge, rule)
    file, _, function = rule.rpartition(":")
    program = (home / file).resolve()
    if not program.is_file() or not function.isidentifier():
        raise ValueError(f"{where}: program is {rule!r}; it must be FILE.py:FUNCTION, the file beside {home}")
    return Principle(name, text, judge, f"{program}:{function}", hashlib.sha256(program.read_bytes()).hexdigest())
