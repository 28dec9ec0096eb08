"""The dense baseline is the published algorithm."""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines.background_anchored_dense import background_anchored_dense
from tests.tokenprune.cases import make_inputs, widened

TOLERANCE = {"atol": 1e-5, "rtol": 0}


def test_equal_to_what_was_recorded(ops_case):
    dense = background_anchored_dense(
        ops_case.features,
        ops_case.cls,
        ops_case.grid_size,
        **ops_case.weights,
        num_keep=ops_case.num_keep,
        max_iters=ops_case.max_iters,
    )
    recorded = ops_case.tensors
    torch.testing.assert_close(dense.logits, recorded["logits"].flatten(1, 2), **TOLERANCE)
    assert torch.equal(dense.parents, recorded["parent"])
    assert torch.equal(dense.roots, recorded["roots"])
    assert torch.equal(dense.counts, recorded["counts"])
    torch.testing.assert_close(dense.cluster_scores, recorded["scores"], **TOLERANCE)
    for crop in range(len(dense.features)):
        # Which empty cells fill up is arbitrary; that they are zero is not.
        valid = dense.counts[crop][dense.keep_indices[crop]] > 0
        expected = recorded["counts"][crop][recorded["index"][crop]] > 0
        assert torch.equal(dense.keep_indices[crop][valid], recorded["index"][crop][expected])
        torch.testing.assert_close(
            dense.features[crop][valid], recorded["selected"][crop][expected], **TOLERANCE
        )
        assert (dense.features[crop][~valid] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_computes_in_the_dtype_of_its_inputs(dtype):
    inputs = make_inputs(3, (7, 5), 32, 6, dtype=dtype)
    dense = background_anchored_dense(**inputs)
    for tensor in (dense.logits, dense.cluster_scores, dense.features):
        assert tensor.dtype == dtype
    truth = background_anchored_dense(**widened(inputs))
    # Four sums of a few dozen products each, rounded between: tens of units in the last place.
    torch.testing.assert_close(
        dense.logits.double(), truth.logits, atol=32 * torch.finfo(dtype).eps, rtol=0
    )
