"""Seconds of a stretch of work, without waiting for a GPU until somebody asks."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """`with Stopwatch(device) as watch: ...`, then `watch.seconds`."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[Any] = []
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __enter__(self) -> Stopwatch:
        if self._events:
            self._events[0].record()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._host_seconds = time.perf_counter() - self._start
        if self._events:
            self._events[1].record()

    @property
    def seconds(self) -> float:
        if not self._events:
            return self._host_seconds
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / 1e3
