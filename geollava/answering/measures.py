"""What an answer takes: seconds by stage, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from geollava.common.system import peak_memory_bytes

Item = TypeVar("Item")


@dataclass
class Stopwatch:
    """Wall-clock seconds per stage, in the order they began; a stage within another is not its."""

    seconds: dict[str, float] = field(default_factory=dict)
    _within: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with self._timed(name):
            try:
                yield
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()

    def waits(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time that each of them has to be waited for is the stage's."""
        iterator = iter(items)
        while True:
            with self._timed(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start, outer = time.perf_counter(), self._within
        self._within = 0.0
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] += elapsed - self._within
            self._within = outer + elapsed


def peak_memory_mib() -> int:
    """The process's largest resident size so far, in MiB."""
    return peak_memory_bytes() // 2**20
