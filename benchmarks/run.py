"""`make bench`: every operator against the published algorithm or formula, written out densely.

Nothing is reported of an implementation whose result differs from the baseline's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import measure, results
from benchmarks.cases import (
    BASELINE,
    CPU_CASES,
    GPU_CASES,
    IMPLEMENTATIONS,
    PARTS,
    Case,
    differences,
)


def prepare(case: Case, impl: str, device: str, threads: int) -> Callable[[], Any]:
    """The call to measure, its inputs built."""
    torch.set_num_threads(threads)
    inputs = case.inputs(device)

    def call() -> Any:
        with torch.no_grad():
            return IMPLEMENTATIONS[case.op][impl](**inputs)

    return call


def implementations(case: Case, device: str, compiled: bool) -> list[str]:
    """Those that run on the device; compiling the baseline takes minutes on a CPU."""
    left_out = set() if compiled else {"dense, compiled"}
    if device == "cpu":
        left_out.add("triton")
    return [name for name in IMPLEMENTATIONS[case.op] if name not in left_out]


def measure_case(
    case: Case, device: str, threads: int, repeats: int, compiled: bool, bandwidth: float
) -> list[dict[str, Any]]:
    names = implementations(case, device, compiled)
    calls = {name: prepare(case, name, device, threads) for name in names}
    dense = calls[BASELINE]()
    for name in names:
        if name == BASELINE or name in PARTS:
            continue
        if found := differences(case, calls[name](), dense):
            raise SystemExit(
                f"{case.op} {case.shape} {name} differs from {BASELINE} in {', '.join(found)}: "
                "not measured"
            )
    del dense

    if device == "cuda":
        seconds = {name: measure.gpu_seconds(call, repeats) for name, call in calls.items()}
        memory = {name: measure.gpu_extra_memory_mib(call) for name, call in calls.items()}
    else:
        seconds = measure.interleaved_seconds(calls, repeats)
        memory = {
            name: statistics.median(
                measure.extra_memory_mib(prepare, case, name, device, threads) for _ in range(3)
            )
            for name in names
        }
    floor_ms = 1e3 * case.bytes_at_least() / bandwidth
    return [
        {
            "op": case.op,
            "impl": name,
            "shape": list(case.shape),
            "dtype": str(case.dtype).removeprefix("torch."),
            "device": results.device_name(device, threads),
            "torch": torch.__version__,
            "triton": triton_version(),
            "latency_ms": measure.percentiles_ms(seconds[name]),
            "peak_memory_mib": round(memory[name], 1),
            # Median of ratios of neighboring runs, so that drift of the machine cancels.
            "times_faster": statistics.median(
                b / a for a, b in zip(seconds[name], seconds[BASELINE], strict=True)
            ),
            "times_less_memory": memory[BASELINE] / max(memory[name], 1e-3),
            "bytes_at_least": case.bytes_at_least(),
            "copy_gb_per_s": round(bandwidth / 1e9, 1),
            "floor_ms": floor_ms,
            "times_floor": 1e3 * statistics.median(seconds[name]) / floor_ms,
        }
        for name in names
    ]


def triton_version() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--op", choices=tuple(IMPLEMENTATIONS), help="only this operator")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compiled", action="store_true", help="torch.compile the baseline too")
    options = parser.parse_args()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(options.threads)

    bandwidth = measure.copy_bytes_per_second(device)
    rows = []
    for case in GPU_CASES if device == "cuda" else CPU_CASES:
        if options.op in (None, case.op):
            measured = measure_case(
                case, device, options.threads, options.repeats, options.compiled, bandwidth
            )
            show(case, measured)
            rows += measured
            path = results.upsert(rows, results.device_name(device, options.threads))
    Console().print(f"written to {path.relative_to(Path.cwd())}")


def show(case: Case, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{case.op} {case.shape} {case.dtype}")
    for heading in ("implementation", "p50 ms", "faster", "times the floor", "extra MiB", "less"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            row["impl"],
            f"{row['latency_ms']['p50']:,.3g}",
            f"{row['times_faster']:.1f}",
            f"{row['times_floor']:,.1f}",
            f"{row['peak_memory_mib']:,.0f}",
            f"{row['times_less_memory']:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
