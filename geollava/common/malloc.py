"""What the C library does with memory that is free again, where it is glibc.

By default it gives some back to the system after nearly every layer on a CPU, and takes page faults
for the next. Each of the ways here suits a process as a whole: the command line takes one of two, a
decoder's process the third, and who set one by an environment variable is left alone.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h numbers them
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
MIB = 2**20


def keep_freed_memory() -> None:
    """For speed, at the price of some memory: an image is encoded without most of its page faults.

    Only blocks above 32 MiB, the most that glibc allows here, are given back at once.
    """
    set_thresholds(mmap=32 * MIB, trim=1024 * MIB)


def return_freed_memory() -> None:
    """For memory, at the price of some speed: a training step on a large scene.

    Blocks that are kept for the next ones would be broken up by the little that stays of every
    chunk of crops, until none of them serves any more.
    """
    set_thresholds(mmap=MIB, trim=MIB)


def keep_freed_rows() -> None:
    """For a process that decodes images: rows, which are read thousands of times, take memory that
    was theirs before, and a whole picture is given back at once, as Pillow has it in 16 MiB each.
    """
    set_thresholds(mmap=8 * MIB, trim=64 * MIB)


def set_thresholds(mmap: int, trim: int) -> None:
    if sys.platform != "linux" or any(name in os.environ for name in CHOSEN):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, mmap)
        mallopt(M_TRIM_THRESHOLD, trim)
