"""What operating systems do in different ways, each said once; Linux alone is tested.

Nothing here limits the memory of a decoder's process on macOS or Windows. What only glibc has says
`malloc.py`. The processes that decode images import this file: standard library alone.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    ENDED_BY_CLOCK = 1  # the code of a process that `end_after` ended; none else ends a decoder's
else:
    import fcntl
    import resource

    ENDED_BY_CLOCK = -signal.SIGALRM

# Whether an open file can be renamed and removed, and a folder be opened and locked.
OPEN_FILES_MOVE = sys.platform != "win32"


def lock(handle: int, *, wait: bool = False) -> None:
    """Locks an open file for as long as it stays open and its process lives.

    Args:
        wait: for another process that has it; on Windows never.

    Raises:
        BlockingIOError: another process has it.
        OSError: the file system has no locks.
    """
    if sys.platform == "win32":
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(str(error)) from error
    else:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_locked(path: Path, handle: int) -> None:
    """Removes a file that this process has locked, then closes it.

    On Windows the file is closed first, and stays if another process has opened it meanwhile.
    """
    if OPEN_FILES_MOVE:
        path.unlink(missing_ok=True)
        os.close(handle)
    else:
        os.close(handle)
        with suppress(OSError):
            path.unlink()


def peak_memory_bytes() -> int:
    """The process's largest resident size so far."""
    if sys.platform == "win32":
        import psutil  # type: ignore[import-untyped]  # accelerate brings it

        peak: int = psutil.Process().memory_info().peak_wset
        return peak
    else:
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kib if sys.platform == "darwin" else kib * 1024  # bytes there


def limit_process(memory_bytes: int) -> None:
    """No core dumps, no end by Ctrl-C, and on Linux no more memory than this.

    macOS does not enforce such a limit, and Windows has none for a process that is running.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked decides
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # Not the address space, most of which threads reserve and never use. Shared pixels do not
        # count.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def end_after(seconds: int) -> None:
    """Ends this process then, in whatever code it is; 0 revokes it."""
    if sys.platform != "win32":
        signal.alarm(seconds)
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)  # by a thread without the interpreter
    else:
        faulthandler.cancel_dump_traceback_later()


class SharedFile:
    """An empty file that this process and a child share, gone when both have closed it.

    Attributes:
        handle: descriptor of it here.
        address: by which the child opens it; see `open_shared`.
        inherited: descriptors that the child must inherit.
    """

    def __init__(self) -> None:
        self.inherited: tuple[int, ...] = ()
        if sys.platform == "win32":  # where a child inherits no descriptor
            handle, self.address = tempfile.mkstemp()
            os.close(handle)
            self.handle = open_shared(self.address)
            return
        if hasattr(os, "memfd_create"):
            self.handle = os.memfd_create("geollava")
        else:  # macOS
            with tempfile.TemporaryFile() as file:
                self.handle = os.dup(file.fileno())
        self.address, self.inherited = str(self.handle), (self.handle,)


def open_shared(address: str) -> int:
    """Descriptor of a `SharedFile` in the child."""
    if sys.platform == "win32":  # the flag removes the file with its last descriptor
        return os.open(address, os.O_RDWR | os.O_BINARY | os.O_TEMPORARY)
    return int(address)
