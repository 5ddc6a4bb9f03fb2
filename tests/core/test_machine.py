"""What is asked of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from anyformer.core.machine import kept_memory

def step():
    tensors = [torch.ones(3_000_000) for _ in range(5)] + [torch.ones(20_000_000)]

def taken():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
before, plain = held(), taken()
with kept_memory():
    kept = taken()
    inside = held()
print(plain, kept, taken(), inside - before, held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, whose memory stays as it is")
def test_memory_is_kept_inside_and_given_back_after():
    """In a process of its own: limits of the C library are its whole process's."""
    out = subprocess.run([sys.executable, "-c", STEPS], check=True, capture_output=True, text=True).stdout
    plain, kept, after, inside, left = map(int, out.split())
    tensors = 4 * 35_000_000
    assert kept < 0.01 * min(plain, after)  # pages that the system empties
    assert inside > 0.9 * tensors and left < inside - 0.5 * tensors


def test_what_is_never_closed_says_nothing_at_the_end():
    code = "from anyformer.core import machine; machine.held = machine.kept_memory(); machine.held.__enter__()"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == ""
