"""A pytest-benchmark view of the same cases: `pytest benchmarks --benchmark-only`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import run
from benchmarks.cases import BASELINE, CPU_CASES, GPU_CASES, Case, differences

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = GPU_CASES if DEVICE == "cuda" else CPU_CASES


@pytest.mark.parametrize(
    ("case", "impl"),
    [(case, impl) for case in CASES for impl in run.implementations(case, DEVICE, compiled=False)],
    ids=lambda value: value if isinstance(value, str) else f"{value.op}-{value.shape}",
)
def test_latency(benchmark: Any, case: Case, impl: str) -> None:
    benchmark.group = f"{case.op} {case.shape}"
    call = run.prepare(case, impl, DEVICE, threads=2)
    if impl != BASELINE:
        assert differences(case, call(), run.prepare(case, BASELINE, DEVICE, threads=2)()) == []

    def measured() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(measured, rounds=5, warmup_rounds=1)
