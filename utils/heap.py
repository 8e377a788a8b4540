"""Memory of the CPU that stays with the process."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
NEVER = 2**31 - 1  # bytes


def keep():
    """Have freed memory used again, rather than given back to the system, which zeroes each page anew: 2 to 10 % of a
    training step here. It is glibc's; other allocators are left as they are."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD) if mallopt else ():
            mallopt(option, NEVER)
