"""`verify`: the contract as a table, for a page or a user's own model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from anyformer.contract.check import CHECKS, ROLES, Check, LeftOut
from anyformer.contract.oracle import NO_ORACLE, available
from anyformer.contract.precision import stored_dtype_is_close_to_float32
from anyformer.contract.probe import scaled
from anyformer.contract.subjects import Subject, apart, checkpoint
from anyformer.core import pages

EXAMPLES = 2  # of a property, on a checkpoint: real models are large
OWN = Check(18, "stored dtype is close to float32", stored_dtype_is_close_to_float32, "model", checkpoint=True)
SLOW = "takes more than ten seconds a case: verify(..., slow=True)"


@dataclass
class Row:
    """One check and its result."""

    item: int
    check: str
    cases: int
    difference: float  # the largest
    seconds: float
    result: str  # "pass", "FAIL" or "left out"
    detail: str  # the first failure, or the reason why it was left out


@dataclass
class Report:
    """The results of `verify`; `ok` unless a check failed."""

    subject: str
    share: bool = False  # differences are shares of the largest value: real weights have a few huge activations
    rows: list[Row] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if at least one check ran and none failed."""
        return not any(row.result == "FAIL" for row in self.rows) and any(row.result == "pass" for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings."""
        return {"subject": self.subject, "ok": self.ok, "share": self.share, "rows": [asdict(row) for row in self.rows]}

    def table(self) -> str:
        """The table as text, a line for each check; failures and left-out checks are explained below it."""
        largest = "difference / largest value" if self.share else "largest difference"
        cells = [("item", "check", "cases", largest, "seconds", "result")]
        for r in self.rows:
            shown = f"{r.difference:.1e}" if r.difference else "0" if r.result == "pass" else ""
            cells.append((str(r.item), r.check, str(r.cases or ""), shown, f"{r.seconds:.1f}", r.result))
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = []
        for row in cells:
            padded = [
                c.ljust(w) if i in (1, 5) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
        lines.insert(1, "  ".join("-" * w for w in widths))
        notes = [f"{r.result}: {r.check}: {r.detail}" for r in self.rows if r.result == "FAIL"]
        reasons = dict.fromkeys(r.detail for r in self.rows if r.result == "left out")
        notes += [
            f"left out ({sum(r.detail == why and r.result == 'left out' for r in self.rows)}): {why}" for why in reasons
        ]
        counts = {kind: sum(r.result == kind for r in self.rows) for kind in ("pass", "FAIL", "left out")}
        head = f"{self.subject}: {counts['pass']} passed, {counts['FAIL']} failed, {counts['left out']} left out"
        return "\n".join([head, "", *lines, *([""] if notes else []), *notes])

    def __str__(self) -> str:
        return self.table()


def verify(
    what: str,
    *,
    slow: bool = False,
    progress: Callable[[str], None] | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> Report:
    """Runs the contract on a page, or on a model of your own.

    For a page (`verify("llama")`): every check over `tiny` and all its cases. For a folder, a GGUF file or a hub id:
    the ledger, the round trip, the numbers of `transformers` if it is installed and has the model, padding, causality,
    decoding with a cache, kernels, gradients. These checks use its weights in float32, whatever their type; one more
    compares the default type of `load` with float32.

    Args:
        what: the name of a page, or a source of `anyformer.load`.
        slow: also runs checks that take more than ten seconds a case.
        progress: called with the name of the running check.
        task, ignore: of a model, as for `anyformer.load`.

    Raises:
        ValueError, FileNotFoundError: if there is no such page or model, or it cannot be loaded.
    """
    if what in pages.names() and (task is not None or ignore):
        raise ValueError(
            f"task and ignore are for the files of a model, and {what!r} is an architecture: every one of its "
            "classes is checked"
        )
    options = {} if task is None else {"task": task}
    own = None if what in pages.names() else checkpoint(what, ignore=tuple(ignore), **options)
    report = Report(what, share=own is not None)
    token = scaled.set(own is not None)
    try:
        for check in CHECKS if own is None else (*CHECKS, OWN):
            if own is None or check.checkpoint:
                if progress is not None:
                    progress(f"{check.item} {check.name}")
                report.rows.append(
                    row(check, *selected(check, what, own), slow=slow, most=100 if own is None else EXAMPLES)
                )
    finally:
        scaled.reset(token)
    report.rows.sort(key=lambda r: r.item)
    return report


def selected(check: Check, name: str, own: Subject | None) -> tuple[Iterator[tuple[Any, ...]], str]:
    """The cases of a check, and the reason if there are none."""
    if own is None:
        if check.over == "parts":
            return iter([()]), ""
        if check.over in ROLES:
            return iter(()), "its cases are masks and mixers, not architectures"
        from anyformer.contract.subjects import subjects

        reasons = [] if check.over == "page" else [why for s in subjects(name) if (why := check.needs(s))]
        return check.cases(name), next(iter(reasons), f"transformers lacks it: {apart(name)}")
    if why := check.needs(own):
        return iter(()), why
    if check.over == "files" and own.published is None:
        return iter(()), "transformers lacks this model, so its numbers cannot be compared"
    return iter([(own, None)] if check.over == "files" else [(own,)]), ""


def row(check: Check, cases: Iterator[tuple[Any, ...]], why: str, slow: bool, most: int) -> Row:
    """Runs a check on its cases, with `most` examples of a property each."""
    entry = Row(check.item, check.name, 0, 0.0, 0.0, "left out", why)
    if check.oracle and not available():
        entry.detail = NO_ORACLE
        return entry
    if check.slow and not slow:
        entry.detail = SLOW
        return entry
    start, failures = time.monotonic(), []
    for case in cases:
        try:
            entry.difference = max(entry.difference, check.once(case, most))
        except LeftOut as reason:  # nothing to compare in this case
            entry.detail = entry.detail if entry.cases else str(reason)
            continue
        except Exception as error:  # any error in a check is a finding
            first = str(error).strip().splitlines()[:1]
            label = ", ".join(getattr(c, "name", str(c)) for c in case)
            failures.append(
                f"{label}: {'' if isinstance(error, AssertionError) else type(error).__name__ + ': '}{''.join(first)}"
            )
        entry.cases += 1
        entry.result, entry.detail = "pass", ""
    entry.seconds = time.monotonic() - start
    if failures:
        entry.result = "FAIL"
        entry.detail = failures[0] + (f" (and {len(failures) - 1} more cases)" if failures[1:] else "")
    return entry


def dumps(report: Report) -> str:
    """The report as JSON text."""
    return json.dumps(report.to_json(), indent=2)
