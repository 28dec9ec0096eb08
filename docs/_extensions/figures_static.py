"""Tables of what kernels take without a GPU: rows of `benchmarks/static.py`."""

from __future__ import annotations

from typing import Any

from figures import measured, rows, table

STATIC = "static/triton-3.7.1"
SHOWN = {"architecture": "sm_90", "dtype": "bfloat16"}


def shown() -> list[dict[str, Any]]:
    return [row for row in rows(STATIC) if all(row[name] == value for name, value in SHOWN.items())]


def kernel_of(row: dict[str, Any]) -> str:
    return f"`{row['kernel'].strip('_').removesuffix('_kernel')}`"


def microseconds(time: dict[str, Any] | None) -> str:
    return f"{time['us']:,.0f} µs" if time else "-"


@measured
def static_code() -> str:
    """What each kernel of an operator takes of a multiprocessor."""
    body = [
        (
            row["operator"],
            kernel_of(row),
            row["registers"],
            f"{row['shared_bytes'] / 1024:.0f} KiB",
            row["blocks_per_sm"],
            row["load_bits"],
            row["barriers"],
            row["shuffles"],
            row["tensor_core_instructions"],
        )
        for row in shown()
        if row["kernel"]
    ]
    headings = ("operator", "kernel", "registers", "shared", "blocks per SM", "bits a load")
    return table((*headings, "barriers", "shuffles", "tensor core"), body)


@measured
def static_bytes() -> str:
    """What each operator asks of global memory, and the time predicted from it."""
    body = [
        (
            row["operator"],
            *(f"{row['bytes'][role] / 1e6:.2f} MB" for role in ("features", "weights", "scratch")),
            f"{row['times_features']:.2f} ×",
            f"{row['times_least']:.2f} ×",
            microseconds(row["predicted"]),
            microseconds(row["measured"]),
        )
        for row in shown()
        if not row["kernel"]
    ]
    headings = ("operator", "features", "weights", "scratch", "of the features", "of the least")
    return table((*headings, "predicted", "measured"), body)
