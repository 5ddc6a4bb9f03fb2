"""Completion of verbs, options and file names in a shell: a script that shtab writes."""

from __future__ import annotations

import argparse

from anyformer.cli.options import Parser

SHELLS = ("bash", "zsh", "tcsh")


def script(shell: str, verbs: dict[str, str]) -> str:
    """The script for a shell, which its start file reads: `eval "$(anyformer --completion bash)"`.

    Args:
        verbs: the summary of each verb.

    Raises:
        ValueError: for another shell. ImportError: without shtab.
    """
    from anyformer.cli import verb

    if shell not in SHELLS:
        raise ValueError(f"--completion {shell}: unknown shell; there is {', '.join(SHELLS)}")
    try:
        import shtab
    except ImportError:
        raise ImportError("--completion needs shtab: pip install 'anyformer[completion]'") from None
    command = argparse.ArgumentParser("anyformer")
    command.add_argument("--version", action="store_true", help="the version")
    places = command.add_subparsers()
    for name, summary in verbs.items():
        own, copy = Parser(name, "", ""), places.add_parser(name, help=summary)
        verb(name).options(own)
        for action in own._actions:
            options = [o for o in action.option_strings if o.startswith("--") and "+" not in o and o != "--help"]
            help = (action.help or "").partition(". ")[0]
            if options and action.nargs == 0:
                copy.add_argument(*options, action="store_true", help=help)
                continue
            if options:
                copied = copy.add_argument(*options, nargs=action.nargs, help=help)
            elif not action.option_strings:
                copied = copy.add_argument(action.dest, nargs="*")
            else:
                continue
            copied.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(command, shell)
