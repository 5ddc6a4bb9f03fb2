"""`python -m benchmarks [names]`: runs the named benchmarks, all by default, and writes docs/benchmarks.md.

The short form of the report goes into README.md, between its marks.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from benchmarks import machine, report
from benchmarks.contest import ROOT, Missing

NAMES = (
    "train_step",
    "train_step_compiled",
    "train_step_57",
    "training",
    "recomputing",
    "decode",
    "engine",
    "serve",
    "load",
    "loss",
    "attention_training",
    "half",
    "imports",
    "agreement",
    "char_lm",
    "communication",
    "context",
    "memory",
    "vision",
    "series",
    "sound",
    "profile",
)
QUIET = 0.2  # cores that others may keep busy on a machine that counts as quiet


def main() -> int:
    """Runs, prints and writes the sections; the number of benchmarks that could not run."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--rounds", type=int, help="turns of each contestant; more for a machine that is not quiet")
    parser.add_argument("--data", help="a text for char_lm, e.g. tinyshakespeare.txt; without it char_lm is left out")
    arguments = parser.parse_args()
    if arguments.data:
        os.environ["BENCH_DATA"] = arguments.data  # the contestants are processes of their own
    if wrong := [n for n in arguments.names if n not in NAMES]:
        parser.error(f"there is no benchmark {wrong[0]!r}; there is {', '.join(NAMES)}")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {arguments.rounds}")
    facts = machine.facts()
    path, readme, failed = ROOT / "docs" / "benchmarks.md", ROOT / "README.md", 0
    for name in arguments.names or [n for n in NAMES if n != "char_lm" or arguments.data]:
        print(name, flush=True)
        busy = machine.busy()
        options = {} if arguments.rounds is None else {"rounds": arguments.rounds}
        try:
            section = importlib.import_module(f"benchmarks.{name}").run(**options)
        except Missing as error:
            failed += 1
            print(f"  {name} did not run, its section stays as it was: {error}", file=sys.stderr)
            continue
        if section.timed and busy > QUIET:
            section.notes.append(f"other programs kept {busy:.1f} cores busy at the start: trust no figure here.")
        print(section.markdown(facts))
        report.write(path, [section], facts)
        print(f"written: {path.relative_to(ROOT)}", flush=True)
        if report.summarise(readme, path):
            print("written: the table in README.md", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
