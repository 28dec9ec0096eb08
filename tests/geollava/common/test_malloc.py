"""Freed memory goes back to the system where a command asks for it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="a choice of glibc"
)
def test_what_is_freed_between_kept_tensors_is_given_back():
    code = """if True:
        import os
        import torch
        from geollava.common.malloc import return_freed_memory

        def resident_mib():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

        return_freed_memory()
        before, kept = resident_mib(), []
        for step in range(40):
            chunk = [torch.ones((2 + step % 3) * 2**20) for _ in range(4)]  # 8 to 16 MiB each
            kept.append(torch.ones(2**18 - 1))  # 1 MiB
            del chunk
        print(resident_mib() - before)
    """
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 40 <= float(run.stdout) < 60  # above 90 without it
