"""Against float64: no further from it than twice the dense writing in the same dtype.

Beside that only what float32 results cannot hold is allowed.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines.background_anchored_dense import background_anchored_dense
from tokenprune import ops

from .cases import anchor_of, fields, head_of, make_inputs, widened

SHAPES = [(2, (24, 24), 1024, 24), (3, (24, 24), 64, 24), (4, (7, 11), 48, 9), (2, (1, 13), 32, 4)]


@pytest.fixture(autouse=True)
def one_thread():
    """The float64 depth-wise convolution starts its threads a thousand times over."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_logits_and_scores(dtype, shape, seed):
    inputs = make_inputs(*shape, dtype=dtype, seed=seed)
    truth = background_anchored_dense(**widened(inputs))
    dense = background_anchored_dense(**inputs)

    logits = ops.background_score(inputs["features"], inputs["grid_size"], *head_of(inputs))
    error = (logits.double() - truth.logits).abs().max()
    allowed = (dense.logits.double() - truth.logits).abs().max() + rounding(truth.logits)
    assert error <= 2 * allowed

    # Scores of all clusters, on the same clusters: what the dense form makes of the true roots.
    num_tokens = inputs["features"].shape[1]
    ours = ops.anchored_select(
        inputs["features"], inputs["cls"], truth.roots, *anchor_of(inputs), num_tokens
    )
    theirs = dense_scores(inputs, truth.roots)
    cells = truth.counts > 0
    assert torch.equal(ours.valid, cells)
    error = (ours.scores.double() - truth.cluster_scores)[cells].abs().max()
    allowed = (theirs.double() - truth.cluster_scores)[cells].abs().max()
    assert error <= 2 * (allowed + rounding(truth.cluster_scores[cells]))

    means = widened(inputs)["features"]
    expected = torch.stack(
        [
            means[crop][truth.roots[crop] == root].mean(0)
            for crop in range(len(means))
            for root in ours.keep_indices[crop][ours.valid[crop]].tolist()
        ]
    )
    error = (ours.features[ours.valid].double() - expected).abs().max()
    assert error <= torch.finfo(dtype).eps * expected.abs().max()


def rounding(truth):
    return torch.finfo(torch.float32).eps * truth.abs().max()


def dense_scores(inputs, roots):
    """[B, N]: the dense form's cluster scores, given roots."""
    features, width = inputs["features"], inputs["features"].shape[2]
    counts = torch.zeros_like(roots).scatter_add_(1, roots, torch.ones_like(roots))
    index = roots[:, :, None].expand(-1, -1, width)
    sums = torch.zeros_like(features).scatter_add_(1, index, features)
    means = sums / counts.clamp(min=1)[:, :, None].to(features.dtype)
    query = inputs["cls"] @ inputs["q_weight"].T + inputs["q_bias"]
    keys = means @ inputs["k_weight"].T + inputs["k_bias"]
    return (keys @ query[:, :, None]).squeeze(-1) / width**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_of_all_three_in_one(dtype, shape):
    inputs = make_inputs(*shape, dtype=dtype)
    result = ops.background_anchored(**inputs)
    # What the dense form makes of the roots that were found, in float64 and in its own dtype.
    truth = dense_scores(widened(inputs), result.assignment).gather(1, result.keep_indices)
    dense = dense_scores(inputs, result.assignment).gather(1, result.keep_indices)
    error = (result.scores.double() - truth)[result.valid].abs().max()
    allowed = (dense.double() - truth)[result.valid].abs().max()
    eps = torch.finfo(torch.float32).eps * truth[result.valid].abs().max()  # of a float32 result
    assert error <= 2 * (allowed + eps)


def test_autocast_changes_nothing():
    inputs = make_inputs(2, (6, 6), 32, 5)

    def run_all():
        grid_size, anchor = inputs["grid_size"], anchor_of(inputs)
        logits = ops.background_score(inputs["features"], grid_size, *head_of(inputs))
        roots = ops.background_merge(logits, grid_size)
        selected = ops.anchored_select(inputs["features"], inputs["cls"], roots, *anchor, 5)
        return [logits, roots, fields(selected), fields(ops.background_anchored(**inputs))]

    plain = run_all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run_all()
    torch.testing.assert_close(cast, plain, atol=0, rtol=0)  # dtypes are compared too


def test_weights_may_be_wider_than_features():
    inputs = make_inputs(2, (6, 6), 32, 5)
    inputs["features"], inputs["cls"] = inputs["features"].bfloat16(), inputs["cls"].bfloat16()
    result = ops.background_anchored(**inputs)
    assert result.features.dtype == torch.bfloat16
    assert result.scores.dtype == torch.float32
