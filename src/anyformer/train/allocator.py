"""Memory that the C library keeps between steps.

glibc gives freed memory at the top of its heap back to the system, and the next step takes it page by page again:
30,000 to 70,000 page faults a step of a 10 M model, 4 to 9 % of its time. Kept, the most that a process holds is the
same.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of mallopt(3)
LARGEST = 1 << 30  # bytes: larger ones are mapped alone, and returned


def keep_freed() -> bool:
    """Lets glibc keep what is freed, in this process from now on; False with another C library."""
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        return bool(mallopt(TRIM, 2**31 - 1) and mallopt(MMAP, LARGEST))
    return False
