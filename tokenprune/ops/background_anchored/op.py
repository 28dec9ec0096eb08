"""ops.background_anchored: background merging and anchored selection as one operator."""

from __future__ import annotations

from torch import Tensor

from tokenprune.ops.anchored_select.op import check_anchor
from tokenprune.ops.background_anchored import reference
from tokenprune.ops.background_merge.op import check_merge_options
from tokenprune.ops.background_score.op import check_affinity_head
from tokenprune.ops.checks import (
    check_features,
    check_finite,
    check_grid,
    check_num_keep,
    resolve_impl,
)
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
    num_keep: int,
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
        num_keep: clusters to keep per crop, 1 to N.
        max_iters, cycles: as in `background_merge`.
        strict: as in `anchored_select`.
        impl: "auto", "reference" or "triton"; a named one runs or raises.

    Returns:
        ReducedTokens with `grid_size` set. Differentiable in `features`.

    Raises:
        ValueError, TypeError, NotImplementedError: as the three operators do.
    """
    check_features(features)
    check_grid(grid_size, features.shape[1])
    check_affinity_head(features, dw_weight, pw_weight, pw_bias)
    check_anchor(features, cls, q_weight, q_bias, k_weight, k_bias)
    check_num_keep(num_keep, features.shape[1])
    check_merge_options(max_iters, cycles)
    resolve_impl("background_anchored", impl)
    if strict:
        check_finite(features=features, cls=cls)
    return reference.background_anchored(
        features,
        cls,
        grid_size,
        dw_weight,
        pw_weight,
        pw_bias,
        q_weight,
        q_bias,
        k_weight,
        k_bias,
        num_keep,
        max_iters,
        cycles,
    )
