"""ops.background_score: how strongly each patch token leans towards each of its nine neighbors."""

from __future__ import annotations

from torch import Tensor

from tokenprune.ops.background_score import reference
from tokenprune.ops.checks import check_features, check_grid, check_shape, resolve_impl


def check_affinity_head(
    features: Tensor, dw_weight: Tensor, pw_weight: Tensor, pw_bias: Tensor
) -> None:
    width = features.shape[2]
    check_shape("dw_weight", dw_weight, (width, 1, 3, 3), "[D, 1, 3, 3]", like=features)
    check_shape("pw_weight", pw_weight, (9, width, 1, 1), "[9, D, 1, 1]", like=features)
    check_shape("pw_bias", pw_bias, (9,), "[9]", like=features)


def background_score(
    features: Tensor,
    grid_size: tuple[int, int],
    dw_weight: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    *,
    impl: str = "auto",
) -> Tensor:
    """Affinity logits of every patch token towards its 3x3 neighborhood.

    Background Token Pruning of GeoLLaVA-8K (arXiv 2505.21375, section 3.2): a depth-wise 3x3
    convolution (zero padding, no bias) and a 1x1 convolution to nine outputs.

    Args:
        features: [B, N, D] patch tokens in raster order, float32, bfloat16, float16 or float64.
            Strided views such as `tokens[:, 1:]` are taken as they are.
        grid_size: (rows, cols) with rows * cols == N.
        dw_weight: [D, 1, 3, 3] depth-wise kernel.
        pw_weight: [9, D, 1, 1] point-wise kernel.
        pw_bias: [9].
        impl: "auto", "reference" or "triton"; a named one runs or raises.

    Returns:
        [B, N, 9] logits, float32 (float64 for float64 features), neighbors in row-major order
        from (-1, -1) to (1, 1). Differentiable in all tensors.

    Raises:
        ValueError: shapes, devices, or an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: an `impl` that does not exist here.
    """
    check_features(features)
    check_grid(grid_size, features.shape[1])
    check_affinity_head(features, dw_weight, pw_weight, pw_bias)
    resolve_impl("background_score", impl)
    return reference.background_score(features, grid_size, dw_weight, pw_weight, pw_bias)
