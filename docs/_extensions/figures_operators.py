"""Figures of the operators: rows of `benchmarks/run.py`."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import GREEDY
from figures import (
    ONE_THREAD,
    TWO_THREADS,
    figure,
    measured,
    mebibytes,
    milliseconds,
    row,
    rows,
    table,
    times,
)


def chain(**wanted: Any) -> dict[str, Any]:
    """The whole operator of the paper, on 144 crops in float32."""
    return row(TWO_THREADS, op="background_anchored", dtype="float32", **wanted)


@figure
def chain_before() -> str:
    return costs(chain(impl="dense"))


@figure
def chain_after() -> str:
    return costs(chain(impl="reference"))


@figure
def chain_faster() -> str:
    return times(chain(impl="reference")["times_faster"])


@figure
def chain_less_memory() -> str:
    return times(chain(impl="reference")["times_less_memory"])


@measured
def selection() -> str:
    """Greedy selection beside the published loops."""
    names = {
        "dense": "published",
        "dense, step by step": "published, all crops",
        "reference": "ours",
    }
    body = [
        (
            f"`{found['op']}`",
            f"{found['shape'][0]:,} × {found['shape'][2]:,}",
            names[found["impl"]],
            costs(found),
            times(found["times_faster"]),
        )
        for found in rows(ONE_THREAD)
        if found["op"] in GREEDY
    ]
    return table(("operator", "crops × channels", "form", "takes", "faster"), body)


@measured
def operators() -> str:
    """Each operator beside the published form that makes dense matrices."""
    body = []
    for ours in rows(TWO_THREADS):
        if ours["impl"] != "reference":
            continue
        same = {key: ours[key] for key in ("op", "shape", "dtype")}
        dense = row(TWO_THREADS, impl="dense", **same)
        body.append(
            (
                f"`{ours['op']}`",
                case(ours["shape"]),
                costs(dense),
                costs(ours),
                times(ours["times_faster"]),
                times(ours["times_less_memory"]),
            )
        )
    return table(("operator", "case", "dense", "ours", "faster", "less memory"), body)


def costs(row: dict[str, Any]) -> str:
    return f"{milliseconds(row['latency_ms']['p50'])}, {mebibytes(row['peak_memory_mib'])}"


def case(shape: list[Any]) -> str:
    return " × ".join(
        f"{side:,}" if isinstance(side, int) else "×".join(map(str, side)) for side in shape
    )
