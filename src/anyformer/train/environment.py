"""The environment of a run: versions, machine, git state, in environment.json."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from anyformer.core.machine import processor
from anyformer.hub.formats.guard import atomic_write

FILE = "environment.json"
PACKAGES = ("anyformer", "torch", "numpy", "safetensors", "tokenizers")


def write(folder: Path) -> None:
    """environment.json in `folder`; the newest start of the run replaces older ones."""
    atomic_write(folder / FILE, (json.dumps(facts(), indent=2) + "\n").encode())


def facts() -> dict[str, Any]:
    """Versions, platform, threads, GPUs, the command, and the git state of the folder that one is in."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "git": _git(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return None


def _git() -> dict[str, Any] | None:
    """Commit, and the files that differ from it; None outside a repository or without git."""
    answers = [_run("git", "rev-parse", "HEAD"), _run("git", "status", "--porcelain")]
    if answers[0] is None or answers[1] is None:
        return None
    return {"commit": answers[0].strip(), "changed": [line[3:] for line in answers[1].splitlines()][:100]}


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
