"""ops.background_anchored: background merging and anchored selection as one operator."""

from __future__ import annotations

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
from tokenprune.ops.checks import (
    check_features,
    check_finite,
    check_grid,
)
from tokenprune.ops.launch import grid_obstacle, resolve_impl
from tokenprune.ops.precision import without_autocast
from tokenprune.tokens import ReducedTokens


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
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            takes three launches, D in multiples of 16, N up to 1,024, and no float64.

    Returns:
        ReducedTokens with `grid_size` set. Differentiable in `features`.

    Raises:
        ValueError, TypeError, NotImplementedError: as the three operators do.
    """
    check_features(features)
    check_grid(grid_size, features.shape[1])
    check_affinity_head(features, dw_weight, pw_weight, pw_bias)
    check_anchor(features, cls, q_weight, q_bias, k_weight, k_bias)
    quotas = resolve_quotas(num_keep, features)
    check_merge_options(max_iters, cycles)
    obstacle = grid_obstacle("background_anchored", features)
    chosen = resolve_impl(impl, obstacle, on_gpu=features.is_cuda)
    if strict:
        check_finite(features=features, cls=cls)
    weights = (dw_weight, pw_weight, pw_bias, q_weight, q_bias, k_weight, k_bias)
    if chosen == "triton":
        return _triton(features, cls, grid_size, *weights, quotas, max_iters, cycles)
    return reference.background_anchored(
        features, cls, grid_size, *weights, num_keep, max_iters, cycles
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
