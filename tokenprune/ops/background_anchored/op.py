"""ops.background_anchored: background merging and anchored selection as one operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tokenprune.ops.anchored_select.op import (
    check_anchor,
    empty_result,
    resolve_quotas,
    save_selection,
    selection_backward,
)
from tokenprune.ops.anchored_select.reference import anchor_vector
from tokenprune.ops.background_anchored import reference
from tokenprune.ops.background_merge.op import check_merge_options
from tokenprune.ops.background_score.op import check_affinity_head
from tokenprune.ops.background_score.reference import tap_weights
from tokenprune.ops.common.checks import (
    check_features,
    check_finite,
    check_grid,
)
from tokenprune.ops.common.launch import grid_obstacle, resolve_impl
from tokenprune.ops.common.precision import without_autocast
from tokenprune.tokens import ReducedTokens

ASSIGNMENTS = ("hard", "straight_through", "soft")


def background_anchored(
    features: Tensor,
    cls: Tensor,
    grid_size: tuple[int, int],
    dw_weight: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    num_keep: int | Tensor,
    *,
    max_iters: int = 12,
    cycles: str = "official",
    strict: bool = False,
    assignment: str = "hard",
    temperature: float = 1.0,
    impl: str = "auto",
) -> ReducedTokens:
    """`background_score`, `background_merge` and `anchored_select` in one call.

    The whole token reduction of GeoLLaVA-8K (arXiv 2505.21375, section 3.2).

    Args:
        features: [B, N, D] patch tokens in raster order, float32, bfloat16, float16 or float64.
        cls: [B, D] class token.
        grid_size: (rows, cols) with rows * cols == N.
        dw_weight: [D, 1, 3, 3]. pw_weight: [9, D, 1, 1]. pw_bias: [9]. The affinity head.
        q_weight, k_weight: [D, D]. q_bias, k_bias: [D]. The anchor's projections.
        num_keep: clusters to keep per crop, 1 to N, or a quota for each as in `anchored_select`.
        max_iters, cycles: as in `background_merge`.
        strict: as in `anchored_select`.
        assignment: "hard" averages whole tokens, as published, and gives the affinity head no
            gradient. "soft" weighs each token by its chance to end at the kept root when pointers
            are followed at random (see `soft`); "straight_through" has the hard result, to the bit,
            and the soft one's gradient. Which roots are kept is the hard choice in all of them.
        temperature: of the softmax over neighbors in "soft" and "straight_through", above 0; the
            lower, the closer to hard.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            takes three launches, D in multiples of 16, N up to 1,024, and no float64.

    Returns:
        ReducedTokens with `grid_size` set. Differentiable in `features`, and unless `assignment`
        is hard in the affinity head's weights.

    Raises:
        ValueError, TypeError, NotImplementedError: as the three operators do; an assignment that
            Triton does not have, or not with a quota per crop.
    """
    check_features(features)
    check_grid(grid_size, features.shape[1])
    check_affinity_head(features, dw_weight, pw_weight, pw_bias)
    check_anchor(features, cls, q_weight, q_bias, k_weight, k_bias)
    quotas = resolve_quotas(num_keep, features)
    check_merge_options(max_iters, cycles)
    check_assignment(assignment, temperature, num_keep)
    if assignment == "straight_through" and not torch.is_grad_enabled():
        assignment = "hard"  # the same values, for less
    obstacle = grid_obstacle("background_anchored", features)
    if assignment != "hard":
        obstacle = NotImplementedError(
            f"assignment={assignment!r} is implemented by impl='reference' only, got impl='triton'"
        )
    chosen = resolve_impl(impl, obstacle, on_gpu=features.is_cuda)
    if strict:
        check_finite(features=features, cls=cls)
    weights = (dw_weight, pw_weight, pw_bias, q_weight, q_bias, k_weight, k_bias)
    if chosen == "triton":
        return _triton(features, cls, grid_size, *weights, quotas, max_iters, cycles)
    return reference.background_anchored(
        features, cls, grid_size, *weights, num_keep, max_iters, cycles, assignment, temperature
    )


def check_assignment(assignment: str, temperature: float, num_keep: int | Tensor) -> None:
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment must be one of {', '.join(ASSIGNMENTS)}, got {assignment!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if assignment != "hard" and isinstance(num_keep, Tensor):
        raise NotImplementedError(
            f"assignment={assignment!r} needs one num_keep for all crops, got a quota for each"
        )


@without_autocast
def _triton(
    features: Tensor,
    cls: Tensor,
    grid_size: tuple[int, int],
    dw_weight: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    quotas: tuple[int, Tensor | None, int],
    max_iters: int,
    cycles: str,
) -> ReducedTokens:
    anchors, offsets = anchor_vector(cls, q_weight, q_bias, k_weight, k_bias, torch.float32)
    means, keep_indices, valid, roots, scores = _background_anchored(
        features,
        anchors[:, 0],
        offsets[:, 0],
        tap_weights(dw_weight, pw_weight, features.dtype),
        pw_bias,
        *grid_size,
        *quotas,
        max_iters,
        cycles,
    )
    return ReducedTokens(means, keep_indices, valid, roots, scores, grid_size, quotas[1])


@torch.library.custom_op("tokenprune::background_anchored", mutates_args=())
def _background_anchored(
    features: Tensor,
    anchors: Tensor,
    offsets: Tensor,
    taps: Tensor,
    bias: Tensor,
    rows: int,
    cols: int,
    num_keep: int,
    cu_seqlens: Tensor | None,
    total: int,
    max_iters: int,
    cycles: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from tokenprune.ops.anchored_select.kernel import launch_select
    from tokenprune.ops.background_merge.kernel import doublings_of
    from tokenprune.ops.background_score.kernel import launch_parents

    parents, token_scores = launch_parents(features, (rows, cols), taps, bias, anchors, offsets)
    doublings = doublings_of(rows * cols, max_iters, cycles)
    merge = cycles == "merge"
    return launch_select(
        features, parents, token_scores, num_keep, cu_seqlens, total, doublings, merge
    )


@_background_anchored.register_fake
def _(
    features: Tensor,
    anchors: Tensor,
    offsets: Tensor,
    taps: Tensor,
    bias: Tensor,
    rows: int,
    cols: int,
    num_keep: int,
    cu_seqlens: Tensor | None,
    total: int,
    max_iters: int,
    cycles: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return empty_result(features, num_keep, cu_seqlens, total)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    save_selection(ctx, inputs[1], inputs[8], output)


def _backward(
    ctx: Any, grad_means: Tensor, _1: None, _2: None, _3: None, grad_scores: Tensor
) -> tuple[Tensor | None, ...]:
    # Taps and bias end in an argmax and get no gradient.
    return (*selection_backward(ctx, grad_means, grad_scores), *[None] * 9)


_background_anchored.register_autograd(_backward, setup_context=_setup)
