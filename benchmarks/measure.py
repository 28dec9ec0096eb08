"""Seconds and memory of a call, on this machine, as fairly as it lets us."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def interleaved_seconds(
    calls: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Wall-clock seconds of each call, taken in turn so that a noisy minute hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def percentiles_ms(seconds: list[float]) -> dict[str, float]:
    """p20, p50 and p80 in milliseconds."""
    cuts = statistics.quantiles(seconds, n=10, method="inclusive")
    return {"p20": 1e3 * cuts[1], "p50": 1e3 * cuts[4], "p80": 1e3 * cuts[7]}


def extra_memory_mib(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """Largest resident size during a call beyond what its inputs take, in MiB, in a new process.

    Args:
        prepare: importable function that builds the inputs and returns the call. The call is the
            first of its process, so what it allocates once and keeps counts too.
        arguments: of `prepare`.
    """
    if sys.platform != "linux":
        raise NotImplementedError(f"peak memory is read from /proc, this is {sys.platform}")
    return in_new_process(_extra_memory_mib, prepare, arguments)


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What an importable function returns there."""
    pool = multiprocessing.get_context("spawn").Pool(1)
    try:
        return pool.apply(function, arguments)
    finally:
        pool.close()  # ends by itself, rather than killed with its locks
        pool.join()


def _extra_memory_mib(
    prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]
) -> float:
    call = prepare(*arguments)
    gc.collect()
    # What building the inputs freed goes back, or the call would take it for nothing.
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
    before = status_mib("VmRSS")
    call()
    return status_mib("VmHWM") - before


def status_mib(field: str) -> float:
    """A size of this process, such as VmRSS now or VmHWM at its largest, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def gpu_seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    """Device seconds of a call, between events, after two calls that do not count."""
    import torch

    for _ in range(2):
        call()
    torch.cuda.synchronize()
    pairs = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def gpu_extra_memory_mib(call: Callable[[], Any]) -> float:
    """Largest allocation during a call beyond what is allocated before it, in MiB."""
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def copy_bytes_per_second(device: str) -> float:
    """What the device's memory gives: bytes read plus bytes written by a large copy."""
    import torch

    size = 2**30 if device == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    if device == "cuda":
        seconds = gpu_seconds(copy, 20)
    else:
        seconds = interleaved_seconds({"copy": copy}, 9)["copy"]
    return 2 * size / statistics.median(seconds)
