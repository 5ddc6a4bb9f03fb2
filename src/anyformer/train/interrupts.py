"""Signals that end a run after the step that is under way."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupts:
    """SIGINT and SIGTERM become a flag, so that a step and a save are finished first; a second one acts as usual."""

    def __init__(self) -> None:
        self.came = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # only there does Python deliver signals
            self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _note(self, number: int, frame: Any) -> None:
        self.came = True
        self.__exit__()
