"""Figures of large scenes: reading, asking, the whole way; rows of `benchmarks/`."""

from __future__ import annotations

from typing import Any

from figures import TWO_THREADS, figure, measured, mebibytes, row, rows, seconds, table, times

IMAGERY = f"imagery/{TWO_THREADS}"
QUESTIONS = f"questions/{TWO_THREADS}"
END_TO_END = f"end_to_end/{TWO_THREADS}"
BATCH = f"batch/{TWO_THREADS}"
TRAINING_STEP = f"training_step/{TWO_THREADS}"
PROPORTIONS = "batch, eight questions, published proportions model"


def file_to_crops(impl: str) -> dict[str, Any]:
    return row(IMAGERY, op="file to crops", impl=impl)


@figure
def crops_published() -> str:
    return seconds(file_to_crops("published")["latency_ms"]["p50"] / 1000)


@figure
def crops_ours() -> str:
    return seconds(file_to_crops("ours")["latency_ms"]["p50"] / 1000)


@figure
def crops_faster() -> str:
    return times(file_to_crops("ours")["times_faster"])


@figure
def questions_before() -> str:
    return seconds(row(QUESTIONS, op=PROPORTIONS, impl="before")["seconds"])


@figure
def questions_kept() -> str:
    return seconds(row(QUESTIONS, op=PROPORTIONS, impl="kept")["seconds"])


@figure
def questions_faster() -> str:
    return times(row(QUESTIONS, op=PROPORTIONS, impl="kept")["times_faster"])


@figure
def ray_two_workers() -> str:
    return times(row(BATCH, impl="2 workers")["times_faster"])


@figure
def training_step_peak() -> str:
    return mebibytes(row(TRAINING_STEP, op="training step")["peak_memory_mib"])


@measured
def imagery() -> str:
    body = [
        (
            f"{found['op']}, {found['impl']}",
            seconds(found["latency_ms"]["p50"] / 1000),
            times(found["times_faster"]),
            mebibytes(found["peak_memory_mib"]),
        )
        for found in rows(IMAGERY)
    ]
    return table(("from 8,192² pixels", "takes", "faster", "peak memory"), body)


@measured
def questions() -> str:
    body = [
        (
            found["op"].removeprefix("batch, eight questions, "),
            {"kept": "kept between questions", "before": "read anew"}[found["impl"]],
            seconds(found["seconds"]),
            times(found["times_faster"]),
            mebibytes(found["peak_memory_mib"]),
        )
        for found in rows(QUESTIONS)
    ]
    return table(("model", "visual tokens are", "takes", "faster", "peak memory"), body)


@measured
def end_to_end() -> str:
    body = [
        (
            f"{found['shape'][0]:,} × {found['shape'][1]:,}",
            found["crops"],
            " → ".join(f"{count:,}" for count in found["tokens"]),
            seconds(found["latency_ms"]["p50"] / 1000),
            mebibytes(found["peak_memory_mib"]),
        )
        for found in rows(END_TO_END)
    ]
    heads = ("scene, pixels", "crops", "visual tokens", "to the first answer token", "peak memory")
    return table(heads, body)
