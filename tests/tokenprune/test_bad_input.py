"""Errors say what was expected and what came."""

from __future__ import annotations

import pytest
import torch

from tokenprune import ReducedTokens, VisionTokens, ops

from .cases import anchor_of, head_of, make_inputs

BATCH, GRID, WIDTH, KEEP = 3, (4, 5), 8, 6


@pytest.fixture
def inputs():
    return make_inputs(BATCH, GRID, WIDTH, KEEP)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"features": torch.zeros(20, 8)},
            ValueError,
            r"must be \[B, N, D\], .*\[20, 8\]",
        ),
        ({"features": torch.zeros(3, 20, 8).int()}, TypeError, "float32, .* got torch.int32"),
        ({"features": None}, TypeError, "features must be a tensor, got NoneType"),
        ({"features": torch.zeros(3, 0, 8)}, ValueError, "N >= 1"),
        ({"grid_size": (4, 4)}, ValueError, "4 x 4 = 16 must equal .* N = 20"),
        ({"grid_size": (0, 5)}, ValueError, "rows must be at least 1, got 0"),
        ({"grid_size": (4.0, 5)}, TypeError, "rows must be an int, got float"),
        ({"grid_size": 20}, ValueError, r"\(rows, cols\), got 20"),
        ({"num_keep": 0}, ValueError, "num_keep must be at least 1, got 0"),
        ({"num_keep": -3}, ValueError, "at least 1, got -3"),
        ({"num_keep": 21}, ValueError, "between 1 and the number of tokens N = 20, got 21"),
        ({"num_keep": 2.0}, TypeError, "num_keep must be an int, got float"),
        ({"num_keep": True}, TypeError, "num_keep must be an int, got bool"),
        ({"cls": torch.zeros(3, 9)}, ValueError, r"cls must be \[B, D\] = \[3, 8\], got \[3, 9\]"),
        ({"dw_weight": torch.zeros(8, 1, 5, 5)}, ValueError, r"\[8, 1, 3, 3\], got \[8, 1, 5, 5\]"),
        ({"pw_weight": torch.zeros(8, 8, 1, 1)}, ValueError, r"\[9, D, 1, 1\] = \[9, 8, 1, 1\]"),
        ({"pw_bias": torch.zeros(8)}, ValueError, r"pw_bias must be \[9\] = \[9\], got \[8\]"),
        ({"q_weight": torch.zeros(8, 4)}, ValueError, r"q_weight must be \[D, D\] = \[8, 8\]"),
        ({"q_bias": torch.zeros(4)}, ValueError, r"q_bias must be \[D\] = \[8\], got \[4\]"),
        ({"k_weight": torch.zeros(8, 4)}, ValueError, r"k_weight must be \[D, D\] = \[8, 8\]"),
        ({"k_weight": torch.zeros(8, 8).long()}, TypeError, "floating point, got torch.int64"),
        ({"k_bias": torch.zeros(4)}, ValueError, r"k_bias must be \[D\] = \[8\], got \[4\]"),
        (
            {"k_bias": torch.zeros(8, device="meta")},
            ValueError,
            "must be on cpu .* got meta",
        ),
        ({"impl": "fast"}, ValueError, "'auto', 'reference' or 'triton', got 'fast'"),
        (
            {"num_keep": torch.ones(2).long()},
            ValueError,
            r"must be \[B\] = \[3\], got \[2\]",
        ),
        ({"num_keep": torch.ones(3)}, TypeError, "must be int64 or int32 .* got torch.float32"),
        ({"num_keep": torch.tensor([1, 2, 21])}, ValueError, "between 0 and .* got 1 to 21"),
        ({"num_keep": torch.tensor([-1, 2, 3])}, ValueError, "between 0 and .* got -1 to 3"),
        ({"cycles": "none"}, ValueError, "'official' or 'merge', got 'none'"),
        ({"max_iters": -1}, ValueError, "max_iters must be at least 0, got -1"),
    ],
)
def test_background_anchored(inputs, change, error, message):
    with pytest.raises(error, match=message):
        ops.background_anchored(**(inputs | change))


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (torch.zeros(2, 20), ValueError, r"\[B, N, 9\], got shape \[2, 20\]"),
        (torch.zeros(2, 20, 8), ValueError, r"\[B, N, 9\], got shape \[2, 20, 8\]"),
        (torch.zeros(2, 20, 9).long(), TypeError, "logits must be floating point, got torch.int64"),
        (torch.zeros(2, 19, 9), ValueError, "N = 19"),
        ([0.0], TypeError, "logits must be a tensor, got list"),
    ],
)
def test_background_merge(logits, error, message):
    with pytest.raises(error, match=message):
        ops.background_merge(logits, GRID)


@pytest.mark.parametrize(
    ("roots", "error", "message"),
    [
        (torch.zeros(3, 20).int(), TypeError, "roots must be int64, got torch.int32"),
        (torch.zeros(3, 19).long(), ValueError, r"\[B, N\] = \[3, 20\], got \[3, 19\]"),
        (torch.full((3, 20), 20), ValueError, r"roots must lie in \[0, 20\), got .* 20 to 20"),
        (torch.full((3, 20), -1), ValueError, "got values from -1 to -1"),
        (torch.zeros(3, 20, device="meta").long(), ValueError, "must be on cpu .* got meta"),
    ],
)
def test_anchored_select(inputs, roots, error, message):
    with pytest.raises(error, match=message):
        ops.anchored_select(inputs["features"], inputs["cls"], roots, *anchor_of(inputs), KEEP)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["features", "cls"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_finite_raises_in_strict_mode(value, where, dtype):
    inputs = make_inputs(BATCH, GRID, WIDTH, KEEP, dtype=dtype)
    inputs[where][1, 3] = value
    with pytest.raises(ValueError, match=f"{where} must be finite, .* in 1 of 3 crops"):
        ops.background_anchored(**inputs, strict=True)
    roots = torch.zeros(3, 20).long()
    with pytest.raises(ValueError, match=f"{where} must be finite"):
        ops.anchored_select(
            inputs["features"], inputs["cls"], roots, *anchor_of(inputs), KEEP, strict=True
        )


def test_without_strict_nan_is_kept_where_it_shows(inputs):
    inputs["features"][1, 7, 2] = float("nan")
    result = ops.background_anchored(**inputs)
    assert result.scores[1].isnan().any()
    assert result.features[1].isnan().any()
    for clean in (0, 2):
        assert result.features[clean].isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"impl": "fast"}, ValueError, "'auto', 'reference' or 'triton', got 'fast'"),
        ({"cycles": "none"}, ValueError, "'official' or 'merge', got 'none'"),
        ({"max_iters": -1}, ValueError, "max_iters must be at least 0, got -1"),
        ({"max_iters": 1.5}, TypeError, "max_iters must be an int, got float"),
        ({"max_iters": True}, TypeError, "max_iters must be an int, got bool"),
    ],
)
def test_background_merge_options(options, error, message):
    with pytest.raises(error, match=message):
        ops.background_merge(torch.zeros(2, 20, 9), GRID, **options)


def test_unknown_impl(inputs):
    features, cls, head = inputs["features"], inputs["cls"], head_of(inputs)
    with pytest.raises(ValueError, match="'auto', 'reference' or 'triton', got 'fast'"):
        ops.background_score(features, GRID, *head, impl="fast")
    roots = torch.zeros(3, 20).long()
    with pytest.raises(ValueError, match="'auto', 'reference' or 'triton', got 'fast'"):
        ops.anchored_select(features, cls, roots, *anchor_of(inputs), KEEP, impl="fast")


def test_vision_tokens():
    with pytest.raises(ValueError, match=r"features must be \[B, N, D\], got shape \[6, 4\]"):
        VisionTokens(torch.zeros(6, 4), (2, 3))
    with pytest.raises(TypeError, match=r"must be one of float32, .* got torch.int32"):
        VisionTokens(torch.zeros(2, 6, 4).int(), (2, 3))
    with pytest.raises(ValueError, match="must equal the number of tokens"):
        VisionTokens(torch.zeros(2, 6, 4), (2, 2))
    with pytest.raises(ValueError, match=r"cls must be \[B, D\] = \[2, 4\], got \[2, 5\]"):
        VisionTokens(torch.zeros(2, 6, 4), (2, 3), cls=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="at least one part"):
        ReducedTokens.cat([])
