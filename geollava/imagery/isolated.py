"""Scenes that are decoded in processes of their own, so that no file can end this one."""

from __future__ import annotations

import atexit
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geollava.common.system import ENDED_BY_CLOCK, SharedFile
from geollava.imagery.scene import Georeference, Scene
from geollava.imagery.worker import allowed_seconds

# Packages without their __init__, which imports torch: seconds and 200 MB. The path is this
# process's, not the folder it was started in.
START = """
import sys
sys.path[:] = sys.argv[3:]
from types import ModuleType
for name in ("geollava", "geollava.imagery", "geollava.common"):
    module = sys.modules[name] = ModuleType(name)
    module.__path__ = [sys.argv[2] + "/" + name.replace(".", "/")]
from geollava.imagery.worker import main
main(sys.argv[1])
"""
ROOT = Path(__file__).resolve().parents[2]

# Those that the readers raise. The process may be in a bad file's hands: nothing else is believed.
ERRORS = {
    kind.__name__: kind
    for kind in (ValueError, TypeError, NotImplementedError, ImportError, ModuleNotFoundError)
}

_idle: list[Worker] = []


class Worker:
    """A process that decodes one scene at a time, and the memory it shares with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ending = "was stopped"
        self._memory: mmap.mmap | None = None
        shared = SharedFile()
        self._pixels = shared.handle
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, shared.address, str(ROOT), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=shared.inherited,
                env=environment,
            )
        except BaseException:
            os.close(self._pixels)
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def ask(
        self, path: Path, do: str, size: tuple[int, int] = (0, 0), **request: Any
    ) -> dict[str, Any]:
        """The answer to a request about a file whose image is of (width, height) `size`.

        Raises:
            ValueError: the file is bad, or the process did not survive it.
        """
        seconds = allowed_seconds(path, size[0] * size[1])
        line = json.dumps({"do": do, "seconds": seconds} | request) + "\n"
        try:
            self._requests.write(line.encode())
            self._requests.flush()
            reply = self._answers.readline()
        except OSError:
            reply = b""
        except BaseException:  # interrupted: an answer would come for nobody
            self.end()
            raise
        if not reply:
            raise ValueError(f"{path} cannot be read: its decoder {self.end(seconds)}")
        answer = json.loads(reply)
        if "error" in answer:
            raise ERRORS.get(answer["error"], ValueError)(answer["message"])
        return answer

    def rows(
        self, path: Path, size: tuple[int, int], shape: tuple[int, int, int], **request: int
    ) -> np.ndarray:
        """[*shape] uint8, rows that the process decodes, until its next request."""
        if self._pixels < 0:
            raise ValueError(f"{path} cannot be read: its decoder {self._ending}")
        count = shape[0] * shape[1] * shape[2]
        if self._memory is None or len(self._memory) < count:
            os.ftruncate(self._pixels, count)
            self._memory = mmap.mmap(self._pixels, count)
        self.ask(path, "rows", size, **request)
        return np.frombuffer(self._memory, np.uint8, count).reshape(shape)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self, seconds: int = 0) -> str:
        """Ends the process. Returns how it had ended before."""
        with self._lock:
            if self._pixels < 0:
                return self._ending
            self._answers.close()
            with suppress(OSError):
                self._requests.close()
            try:
                code = self._process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
            os.close(self._pixels)
            self._pixels, self._memory = -1, None
            self._ending = f"ended with code {code}"
            if code == ENDED_BY_CLOCK:
                self._ending = f"did not finish in {seconds} seconds"
            elif code < 0:
                self._ending = f"crashed ({signal.Signals(-code).name})"
            return self._ending


class IsolatedScene(Scene):
    """As the scene that `open_here` gives, but read in another process.

    Args:
        path: a file.
        options: of `open_here`.

    Raises:
        ValueError: the file is bad, or its decoder crashes, hangs, or takes too much memory.
        ImportError: a raster, and rasterio is missing.
    """

    def __init__(self, path: Path, **options: Any) -> None:
        self._path, self._reading = path, threading.Lock()
        self._worker: Worker | None = take_worker()
        self._finalizer = weakref.finalize(self, self._worker.end)
        try:
            # A decoder that waited may have been started in another folder.
            folder = "/" if path.is_absolute() else os.getcwd()
            request = {"name": str(path), "folder": folder} | options
            opened = self._worker.ask(path, "open", **request)
        except Exception:
            self._give_back()
            raise
        width, height = opened["size"]
        self.size = width, height
        self.as_published, self.readers = opened["as_published"], opened["readers"]
        self.max_factor = opened["max_factor"]
        if place := opened["georeference"]:
            self.georeference = Georeference(place["crs"], tuple(place["transform"]))

    def read_rows(self, top: int, bottom: int, factor: int) -> np.ndarray:
        with self._reading:
            return self._rows(top, bottom, factor).copy()

    def read_image(self, top: int, bottom: int, factor: int) -> Image.Image:
        with self._reading:
            return Image.fromarray(self._rows(top, bottom, factor))

    def check(self) -> Iterator[None]:
        done = False
        while not done:
            with self._reading:
                done = self._alive_worker().ask(self._path, "check", self.size)["done"]
            yield

    def close(self) -> None:
        with self._reading:
            self._give_back()

    def _rows(self, top: int, bottom: int, factor: int) -> np.ndarray:
        shape = bottom - top, -(-self.size[0] // factor), 3
        request = {"top": top, "bottom": bottom, "factor": factor}
        return self._alive_worker().rows(self._path, self.size, shape, **request)

    def _alive_worker(self) -> Worker:
        if self._worker is None:
            raise ValueError(f"{self._path} cannot be read any more, it was closed")
        return self._worker

    def _give_back(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        self._finalizer.detach()
        try:
            worker.ask(self._path, "close")
        except (OSError, ValueError):
            worker.end()
        else:
            _idle.append(worker)


def take_worker() -> Worker:
    while _idle:
        worker = _idle.pop()
        if worker.alive:
            return worker
        worker.end()
    return Worker()


def end_workers() -> None:
    """Ends the processes that no scene uses."""
    while _idle:
        _idle.pop().end()


atexit.register(end_workers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # they answer to the parent
