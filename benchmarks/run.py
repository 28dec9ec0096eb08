"""`make bench`: the operators against the dense form of the published algorithm.

Nothing is reported unless both give the same result.
"""

from __future__ import annotations

import argparse
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
from benchmarks.baselines.background_anchored_dense import background_anchored_dense
from benchmarks.cases import background_anchored_inputs
from tokenprune import ops

BASELINE = "dense"
GRID, WIDTH, NUM_KEEP = (24, 24), 1024, 24


def reference(**inputs: Any) -> Any:
    return ops.background_anchored(**inputs, impl="reference")


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    BASELINE: background_anchored_dense,
    "reference": reference,
}


def prepare(impl: str, crops: int, threads: int) -> Callable[[], Any]:
    """The call to measure, its inputs built."""
    torch.set_num_threads(threads)
    inputs = background_anchored_inputs(crops, GRID, WIDTH, NUM_KEEP, torch.float32)

    def call() -> Any:
        with torch.inference_mode():
            return IMPLEMENTATIONS[impl](**inputs)

    return call


def differences(result: Any, dense: Any) -> list[str]:
    """What of a result is not equal to the baseline's."""
    found = []
    if not torch.equal(result.assignment, dense.roots):
        found.append("roots")
    if not torch.equal(result.keep_indices, dense.keep_indices):
        found.append("kept indices")
    elif not torch.allclose(result.features, dense.features, atol=1e-5, rtol=0):
        found.append("features")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crops", type=int, default=144, help="crops in the batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()

    calls = {name: prepare(name, options.crops, options.threads) for name in IMPLEMENTATIONS}
    dense = calls[BASELINE]()
    for name, call in calls.items():
        if name != BASELINE and (found := differences(call(), dense)):
            raise SystemExit(f"{name} differs from {BASELINE} in {', '.join(found)}: not measured")
    del dense

    seconds = measure.interleaved_seconds(calls, options.repeats)
    memory = {
        name: statistics.median(
            measure.extra_memory_mib(prepare, name, options.crops, options.threads)
            for _ in range(3)
        )
        for name in IMPLEMENTATIONS
    }
    device = results.device_name(options.threads)
    rows = [
        {
            "op": "background_anchored",
            "impl": name,
            "shape": {"B": options.crops, "grid": GRID, "D": WIDTH, "K": NUM_KEEP},
            "dtype": "float32",
            "device": device,
            "torch": torch.__version__,
            "latency_ms": measure.percentiles_ms(seconds[name]),
            "peak_memory_mib": round(memory[name], 1),
            # Medians of ratios of neighboring runs, so that drift of the machine cancels.
            "times_faster": statistics.median(
                b / a for a, b in zip(seconds[name], seconds[BASELINE], strict=True)
            ),
            "times_less_memory": memory[BASELINE] / memory[name],
        }
        for name in IMPLEMENTATIONS
    ]
    path = results.upsert(rows, device)
    show(rows)
    Console().print(f"written to {path.relative_to(Path.cwd())}")


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "implementation", "p50 ms (p20 to p80)", "times faster", "extra MiB", "times less"
    )
    for row in rows:
        latency = row["latency_ms"]
        table.add_row(
            row["impl"],
            f"{latency['p50']:,.0f} ({latency['p20']:,.0f} to {latency['p80']:,.0f})",
            f"{row['times_faster']:.1f}",
            f"{row['peak_memory_mib']:,.0f}",
            f"{row['times_less_memory']:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
