"""Equal to what the published implementation recorded."""

from __future__ import annotations

import math

import torch

from tests.conftest import OPS_CASES
from tokenprune import VisionTokens, get_method, ops

from .cases import fields

TOLERANCE = {"atol": 1e-5, "rtol": 0}


def test_every_recorded_case_is_run(golden):
    recorded = {path.stem.removeprefix("ops_") for path in golden.glob("ops_*.safetensors")}
    assert recorded == set(OPS_CASES)


def test_logits(ops_case):
    logits = ops.background_score(ops_case.features, ops_case.grid_size, *ops_case.head)
    torch.testing.assert_close(logits, ops_case.tensors["logits"].flatten(1, 2), **TOLERANCE)


def test_parents_and_roots(ops_case):
    logits = ops.background_score(ops_case.features, ops_case.grid_size, *ops_case.head)
    parents = ops.background_merge(logits, ops_case.grid_size, max_iters=0)
    assert torch.equal(parents, ops_case.tensors["parent"])
    roots = ops.background_merge(logits, ops_case.grid_size, max_iters=ops_case.max_iters)
    assert torch.equal(roots, ops_case.tensors["roots"])


def check_kept(ops_case, result):
    recorded = ops_case.tensors
    assert torch.equal(result.assignment, recorded["roots"])
    recorded_valid = recorded["counts"].gather(1, recorded["index"]) > 0
    for crop in range(len(result.features)):
        valid, expected = result.valid[crop], recorded_valid[crop]
        kept = result.keep_indices[crop][valid]
        assert torch.equal(kept, recorded["index"][crop][expected])
        torch.testing.assert_close(
            result.features[crop][valid], recorded["selected"][crop][expected], **TOLERANCE
        )
        torch.testing.assert_close(
            result.scores[crop][valid], recorded["scores"][crop][kept], **TOLERANCE
        )
        assert torch.equal(result.counts[crop][valid], recorded["counts"][crop][kept])
        assert (result.features[crop][~valid] == 0).all()
        assert (result.scores[crop][~valid] == -math.inf).all()


def in_a_row(ops_case):
    logits = ops.background_score(ops_case.features, ops_case.grid_size, *ops_case.head)
    roots = ops.background_merge(logits, ops_case.grid_size, max_iters=ops_case.max_iters)
    anchor = ops_case.anchor
    return ops.anchored_select(ops_case.features, ops_case.cls, roots, *anchor, ops_case.num_keep)


def all_in_one(ops_case):
    return ops.background_anchored(
        ops_case.features,
        ops_case.cls,
        ops_case.grid_size,
        **ops_case.weights,
        num_keep=ops_case.num_keep,
        max_iters=ops_case.max_iters,
    )


def test_three_operators_in_a_row(ops_case):
    check_kept(ops_case, in_a_row(ops_case))


def test_all_in_one(ops_case):
    result = all_in_one(ops_case)
    check_kept(ops_case, result)
    assert result.grid_size == ops_case.grid_size


def test_both_ways_choose_the_same(ops_case):
    separate, fused = fields(in_a_row(ops_case)), fields(all_in_one(ops_case))
    # One product for logits and scores may round the scores otherwise; nothing else may differ.
    torch.testing.assert_close(fused.pop("scores"), separate.pop("scores"), **TOLERANCE)
    for name, value in fused.items():
        assert torch.equal(value, separate[name]), name


def test_as_a_method(ops_case):
    method = get_method("background_anchored", **ops_case.weights, max_iters=ops_case.max_iters)
    tokens = VisionTokens(ops_case.features, ops_case.grid_size, cls=ops_case.cls)
    check_kept(ops_case, method.reduce(tokens, ops_case.num_keep))
