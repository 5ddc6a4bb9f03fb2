"""Tests of a worker run in a child of it, so that what they leave goes with the child.

A worker collects all tests and stays as small as it was then. Its child runs groups of tests until it holds more than
a child may between two groups; it ends there, its fixtures with it, and a new one goes on.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import util
from multiprocessing.connection import Connection, Pipe
from typing import Any

import pytest
from _pytest.runner import CallInfo

from tests import forked

Told = list[tuple[str, dict[str, Any]]]  # hooks of pytest that the child called, and with what


class Teller:
    """The plugin in the child in the place of the one that speaks with the process that started the worker."""

    def __init__(self) -> None:
        self.told: Told = []

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.told.append(("pytest_runtest_logstart", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        self.told.append(("pytest_runtest_logfinish", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.told.append(("pytest_runtest_logreport", {"report": report}))

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        words: dict[str, Any] = {"when": when, "nodeid": nodeid, "location": location}
        warning_message.source = None
        try:
            pickle.dumps(warning_message)
        except Exception:  # of a class that is made in a function, or with arguments that stay here
            w = warning_message
            warning_message = warnings.WarningMessage(UserWarning(str(w.message)), UserWarning, w.filename, w.lineno)
        self.told.append(("pytest_warning_recorded", {"warning_message": warning_message, **words}))


class Runner:
    """The plugin of a worker that has a child run each test, and reports what the child tells.

    Args:
        prepare: makes, before a fork, what many children would make each for itself.
        full: True when the child has grown so much that it ends behind a group.
        notes: what the child has counted since it was last asked.
        add: adds such notes to those of the worker.
    """

    def __init__(
        self,
        prepare: Callable[[pytest.Session], None],
        full: Callable[[], bool],
        notes: Callable[[], Any],
        add: Callable[[Any], None],
    ):
        self.prepare, self.full, self.notes, self.add = prepare, full, notes, add
        self.link: Connection | None = None
        self.pid = 0
        self.number: dict[pytest.Item, int] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        if self.link is None:
            self.fork(item.session)
        assert self.link is not None
        try:
            self.link.send((self.number[item], None if nextitem is None else self.number[nextitem]))
            told, notes, stays, ends = self.link.recv()
        except (EOFError, ConnectionError):
            told, notes, stays, ends = [died(item, self.wait())], None, True, None
            forked.server.cache_clear()  # whose connection may have been left within a word
        if not stays:
            self.wait()
        for name, words in told:
            hook = getattr(item.ihook, name)
            hook.call_historic(kwargs=words) if name == "pytest_warning_recorded" else hook(**words)
        if notes is not None:
            self.add(notes)
        if ends is not None:
            raise ends
        return True

    def pytest_sessionfinish(self) -> None:
        if self.link is not None:
            self.wait()

    def wait(self) -> int:
        """The status of the child, which ends when nobody asks any more."""
        assert self.link is not None
        self.link.close()
        self.link = None
        return os.waitpid(self.pid, 0)[1]

    def fork(self, session: pytest.Session) -> None:
        """A child, with all that it shares with the next: the folder for files, and the process that forks others."""
        self.number = self.number or {item: at for at, item in enumerate(session.items)}
        session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        if "not slow" in session.config.option.markexpr and any(forks(item) for item in session.items):
            forked.server()
        self.prepare(session)
        gc.collect()
        gc.freeze()
        self.link, theirs = Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the one that hears orders
            self.pid = os.fork()
        if self.pid == 0:
            self.link.close()
            try:
                self.serve(session, theirs)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
                os._exit(1)
            os._exit(0)
        theirs.close()

    def serve(self, session: pytest.Session, link: Connection) -> None:
        """Tests that the worker names, until it names no more or this process is full."""
        plugins = session.config.pluginmanager
        for plugin in plugins.get_plugins():
            if plugin is self or type(plugin).__name__ == "WorkerInteractor":
                plugins.unregister(plugin)
        plugins.register(teller := Teller())
        self.notes()  # of children before this one
        stays = True
        while stays:
            teller.told = []
            ends = None
            try:
                item, following = (None if at is None else session.items[at] for at in link.recv())
            except EOFError:
                break
            assert item is not None
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            except (KeyboardInterrupt, pytest.exit.Exception) as end:
                ends, stays = end, False
            if following is None or self.full():
                stays = False
                call = CallInfo.from_call(lambda: session._setupstate.teardown_exact(None), "teardown")
                if call.excinfo is not None:
                    report = item.ihook.pytest_runtest_makereport(item=item, call=call)
                    teller.pytest_runtest_logreport(report)
            link.send((teller.told, self.notes(), stays, ends))
        util._exit_function()  # type: ignore[attr-defined]  # ends the processes that tests have started


def forks(item: pytest.Item) -> bool:
    """True for a test whose processes are forked."""
    return not {"forked", "process"}.isdisjoint(getattr(item, "fixturenames", ()))


def died(item: pytest.Item, status: int) -> tuple[str, dict[str, Any]]:
    """The report of a test in which the child ended."""
    code = os.waitstatus_to_exitcode(status)
    why = f"the process ended with signal {signal.Signals(-code).name}" if code < 0 else f"the process exited: {code}"
    report = pytest.TestReport(item.nodeid, item.location, {item.name: 1}, "failed", f"{item.nodeid}: {why}", "call")
    return "pytest_runtest_logreport", {"report": report}
