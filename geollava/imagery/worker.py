"""The process in which files are decoded: one scene at a time, requests and answers as JSON lines.

What a decoder does to it stays here: a crash ends this process alone, a clock ends it when a
request takes too long (also in C, and when nobody waits any more), and its memory is limited where
the system can do that (`common/system.py`).
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from geollava.common.malloc import keep_freed_rows
from geollava.common.system import end_after, limit_process, open_shared
from geollava.imagery.picture import MAX_PIXELS, reason_of
from geollava.imagery.reader import open_here

MEMORY_BYTES = 4 * 1024**3
# A request may take this long, longer for a large file, which may lie on a slow disk, and longer
# for many pixels, which may have to be decoded at once.
SECONDS = 15
BYTES_PER_SECOND = 5_000_000
PIXELS_PER_SECOND = 10_000_000
RAISED = (ValueError, TypeError, NotImplementedError, ImportError)


def main(pixels: str) -> None:
    """Serves requests until there are no more.

    Args:
        pixels: address of the shared file that rows are written to.
    """
    limit_process(MEMORY_BYTES)
    keep_freed_rows()
    with os.fdopen(os.dup(1), "w", encoding="ascii") as answers:
        os.dup2(2, 1)  # what libraries print
        server = Server(open_shared(pixels))
        for line in sys.stdin:
            request = json.loads(line)
            end_after(request.pop("seconds"))
            answer = server.answer(request)
            end_after(0)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


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
