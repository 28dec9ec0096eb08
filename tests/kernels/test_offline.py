"""Every kernel compiles for the GPUs we know, fits the chip and spills nothing.

`benchmarks/static.py` keeps the rows of the pinned Triton true; for others they are made here.
"""

from __future__ import annotations

import importlib.metadata

import pytest

from benchmarks import static
from benchmarks.kernels import gate
from benchmarks.kernels.architectures import ARCHITECTURES

# Their bits must not depend on whether a release of Triton fuses products and sums.
EXACT = ("_background_merge_fwd_kernel", "_anchored_select_fwd_kernel", "_cluster_mean_fwd_kernel")
KERNELS = 36  # with their forms, of all launches
TUNED = [one for one in ARCHITECTURES if one.capability in (80, 90)]


@pytest.fixture(scope="module")
def rows():
    path = gate.path_of(importlib.metadata.version("triton"))
    return gate.read(path) if path.exists() else static.measure(TUNED)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TUNED, ids=lambda one: one.name)
def test_compiles_and_fits(rows, architecture):
    kernels = [row for row in rows if row["kernel"] and row["architecture"] == architecture.name]
    assert len(kernels) == 2 * KERNELS
    for row in kernels:
        assert row["spilled_bytes"] == row["local_memory_instructions"] == 0, row
        assert row["registers"] <= 255, row
        assert row["blocks_per_sm"] >= 1, row
        if row["kernel"] in EXACT and not row["constants"].get("WEIGHTED"):
            assert row["fused_multiply_adds"] == 0, row
    scores = [row for row in kernels if row["kernel"] == "_anchor_score_fwd_kernel"]
    assert all(row["fused_multiply_adds"] for row in scores)  # there it is counted at all
