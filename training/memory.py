"""Memory allocation on the CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
NEVER = 2**31 - 1  # bytes


def keep_freed_memory():
    """Let glibc reuse freed memory instead of returning it to the system, which zeroes each page anew.

    This saves 2 to 10 % of a training step. Other allocators are not changed.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD) if mallopt else ():
            mallopt(option, NEVER)
