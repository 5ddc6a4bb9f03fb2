"""Processes of Python that begin behind the imports: a process that has imported the library forks each of them.

Starting an interpreter and importing PyTorch, its compiler and the library takes 3 to 4 seconds of processor time; a
fork takes some hundredths. The fixture `forked` replaces `subprocess.Popen` for the tests that use it. `make test-all`
starts real interpreters, each with a hash seed of its own.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PRELOADED = (
    "torch._dynamo", "torch.distributed", "matplotlib.figure",
    "anyformer.train", "anyformer.cli.train", "anyformer.federate", "anyformer.serve",
)  # fmt: skip
ROOT = Path(__file__).parents[1]
Exec = subprocess.Popen


class Popen(Exec):  # type: ignore[type-arg]
    """`subprocess.Popen`, which forks what it can: `python -c`, `-m` or a file, without other switches."""

    ends: int | None = None  # where the status of a fork is read, which is no child of this process

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Any, cwd: Any,
                       env: Any, *rest: Any) -> None:  # fmt: skip
        files, session = rest[3:9], rest[14]
        words = [os.fspath(word) for word in args] if isinstance(args, Sequence) and not isinstance(args, str) else []
        if words[:1] != [sys.executable] or not forks(words[1:]) or preexec_fn or pass_fds or session:
            return super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest
            )
        said = json.dumps([words[1:], os.fspath(cwd or os.getcwd()), dict(os.environ if env is None else env)]).encode()
        given = [fd if fd != -1 else at for at, fd in enumerate((files[0], files[3], files[5]))]
        self.ends, status = os.pipe()
        with lock:
            parent, _ = server()
            socket.send_fds(parent, [len(said).to_bytes(8, "big")], [*given, status])
            parent.sendall(said)
            self.pid = int.from_bytes(parent.recv(8), "big")
        os.close(status)
        self._child_created = True
        self._close_pipe_fds(*files)  # type: ignore[attr-defined]

    def _try_wait(self, flags: int) -> tuple[int, int]:
        """The process and its status once it has ended, (0, 0) before."""
        if self.ends is None:
            return super()._try_wait(flags)  # type: ignore[misc, no-any-return]
        if flags & os.WNOHANG and not select.select([self.ends], [], [], 0)[0]:
            return 0, 0
        said = os.read(self.ends, 8)
        os.close(self.ends)
        return self.pid, int(said or signal.SIGKILL)

    def _internal_poll(self, *rest: Any, **others: Any) -> int | None:
        """The exit code, None before the end."""
        if self.ends is None:
            return super()._internal_poll(*rest, **others)  # type: ignore[misc, no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


lock = threading.Lock()


def forks(words: list[str]) -> bool:
    """True for a command that a fork can run."""
    return sys.platform == "linux" and bool(words) and (words[0] in ("-c", "-m") or not words[0].startswith("-"))


@functools.cache
def server() -> tuple[socket.socket, Exec[bytes]]:
    """The connection to the process that forks, and the process, started once."""
    ours, theirs = socket.socketpair()
    code = f"from tests.forked import serve; serve({theirs.fileno()})"
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    process = Exec([sys.executable, "-c", code], pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": path})
    theirs.close()
    return ours, process


def serve(number: int) -> None:
    """A fork for each question, until nobody is there to ask."""
    for module in PRELOADED:
        importlib.import_module(module)
    os.fsync = lambda fd: None  # as in the tests' own process
    gc.collect()
    gc.freeze()
    link = socket.socket(fileno=number)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those between
    while size := socket.recv_fds(link, 8, 4):
        if not size[0]:
            return
        said = b""
        while len(said) < int.from_bytes(size[0], "big"):
            said += link.recv(1 << 20)
        at, into = os.pipe()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            *given, status = size[1]
            if pid := os.fork():  # the process between waits, and says how it ended
                os.write(into, pid.to_bytes(8, "big"))
                for fd in (link.detach(), at, into, *given):
                    os.close(fd)
                os.write(status, str(os.waitpid(pid, 0)[1]).encode())
                os._exit(0)
            for fd in (link.detach(), at, into, status):
                os.close(fd)
            words, folder, environment = json.loads(said)
            become(words, folder, environment, given)
        link.sendall(os.read(at, 8))
        for fd in (at, into, *size[1]):
            os.close(fd)


def become(words: list[str], folder: str, environment: dict[str, str], given: list[int]) -> None:
    """The work of an interpreter that is given these words, folder, environment and three files."""
    for at, fd in enumerate(given):
        os.dup2(fd, at)
        os.close(fd)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.import_module("numpy").random.seed()
    status: Any = 0
    try:
        run(words)
        threading._shutdown()  # type: ignore[attr-defined]
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status or 0)


def run(words: list[str]) -> None:
    """`python -c CODE`, `python -m MODULE` or `python FILE`, with what follows as arguments."""
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")
