"""The process in which files are decoded: one scene at a time, requests and answers as JSON lines.

What a decoder does to it stays here: a crash ends this process alone, the kernel ends it when a
request takes too long (also in C, and when nobody waits any more), and its memory is limited.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from geollava.common.malloc import keep_freed_rows
from geollava.imagery.picture import MAX_PIXELS, reason_of
from geollava.imagery.reader import open_here

MEMORY_BYTES = 4 * 1024**3
# A request may take this long, longer for a large file, which may lie on a slow disk, and longer
# for many pixels, which may have to be decoded at once.
SECONDS = 15
BYTES_PER_SECOND = 5_000_000
PIXELS_PER_SECOND = 10_000_000
RAISED = (ValueError, TypeError, NotImplementedError, ImportError)


def main(pixels: int) -> None:
    """Serves requests until there are no more.

    Args:
        pixels: descriptor of the file that rows are written to.
    """
    limit_resources()
    keep_freed_rows()
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print
        server = Server(pixels)
        for line in sys.stdin:
            request = json.loads(line)
            signal.alarm(request.pop("seconds"))
            answer = server.answer(request)
            signal.alarm(0)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def limit_resources() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # Not the address space, most of which threads reserve and never use. Shared pixels do not
        # count. macOS (untested) does not enforce such a limit.
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))


def allowed_seconds(path: Path, pixels: int = 0) -> int:
    """How long one request may take, about a file of so many pixels (0: that is not known yet)."""
    decoded = min(pixels, MAX_PIXELS)  # larger ones are rasters, read by windows
    return SECONDS + path.stat().st_size // BYTES_PER_SECOND + decoded // PIXELS_PER_SECOND


class Server:
    """Holds the scene that requests are about."""

    def __init__(self, pixels: int) -> None:
        self.pixels, self.path = pixels, ""
        self.scene: Any = None
        self.checking: Iterator[None] | None = None
        self.memory: mmap.mmap | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return getattr(self, request.pop("do"))(**request)
        except RAISED as error:
            return {"error": type(error).__name__, "message": str(error)}
        except MemoryError:
            message = f"{self.path} needs more than {MEMORY_BYTES / 2**30:.0f} GiB to be decoded"
            return {"error": "ValueError", "message": message}
        except Exception as error:  # libraries raise what they like on damaged files
            message = f"{self.path} cannot be read: {reason_of(error)}"
            return {"error": "ValueError", "message": message}

    def open(self, name: str, folder: str, **options: Any) -> dict[str, Any]:
        """Opens a file; a relative name starts at the folder."""
        os.chdir(folder)
        self.path, self.checking = name, None
        self.scene = scene = open_here(Path(name), **options)
        place = scene.georeference
        return {
            "size": scene.size,
            "georeference": place and {"crs": place.crs, "transform": place.transform},
            "as_published": scene.as_published,
            "max_factor": scene.max_factor,
            "readers": scene.readers,
        }

    def rows(self, top: int, bottom: int, factor: int) -> dict[str, Any]:
        rows = self.scene.read_rows(top, bottom, factor)
        if self.memory is None or len(self.memory) < rows.size:
            self.memory = mmap.mmap(self.pixels, 0)
        np.frombuffer(self.memory, np.uint8, rows.size).reshape(rows.shape)[...] = rows
        return {}

    def check(self) -> dict[str, Any]:
        if self.checking is None:
            self.checking = self.scene.check()
        return {"done": next(self.checking, "done") == "done"}

    def close(self) -> dict[str, Any]:
        self.scene.close()
        self.scene = None
        return {}
