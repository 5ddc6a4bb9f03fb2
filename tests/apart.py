"""Tests in a process of their own: what a real model, or a measured one, holds is not held by the worker to the end."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """The test, run by a fork of the process; its fixtures are made before. Where there is no fork, run as it is."""
    if not hasattr(os, "fork"):
        return test

    @functools.wraps(test)
    def forked(*args: Any, **kwargs: Any) -> None:
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            said = ""
            try:
                test(*args, **kwargs)
            except pytest.skip.Exception as reason:
                said = f"skip {reason}"
            except BaseException:
                said = f"fail {traceback.format_exc()}"
            os.write(into, said.encode()[-60_000:])
            os._exit(0)
        os.close(into)
        with os.fdopen(out, encoding="utf-8", errors="replace") as pipe:
            kind, _, text = pipe.read().partition(" ")
        status = os.waitpid(child, 0)[1]
        if kind == "skip":
            pytest.skip(text)
        assert status == 0 and not kind, text or f"the process ended with {status}"

    return forked
