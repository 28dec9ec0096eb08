"""ops.anchored_select: the clusters that the class token looks for."""

from __future__ import annotations

from torch import Tensor

from tokenprune.ops.anchored_select import reference
from tokenprune.ops.checks import (
    check_device,
    check_features,
    check_finite,
    check_indices,
    check_num_keep,
    check_shape,
    resolve_impl,
)
from tokenprune.tokens import ReducedTokens


def check_anchor(
    features: Tensor,
    cls: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
) -> None:
    batch, _, width = features.shape
    check_shape("cls", cls, (batch, width), "[B, D]", like=features)
    check_shape("q_weight", q_weight, (width, width), "[D, D]", like=features)
    check_shape("q_bias", q_bias, (width,), "[D]", like=features)
    check_shape("k_weight", k_weight, (width, width), "[D, D]", like=features)
    check_shape("k_bias", k_bias, (width,), "[D]", like=features)


def anchored_select(
    features: Tensor,
    cls: Tensor,
    roots: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    num_keep: int,
    *,
    strict: bool = False,
    impl: str = "auto",
) -> ReducedTokens:
    """The `num_keep` cluster means per crop that answer best to the class token.

    Anchored Token Selection of GeoLLaVA-8K (arXiv 2505.21375, section 3.2): single head, no layer
    norm, score = (Wq cls + bq) . (Wk mean + bk) / sqrt(D). Released weights pass an encoder layer's
    value projection as Wk.

    Args:
        features: [B, N, D] patch tokens, float32, bfloat16, float16 or float64.
        cls: [B, D] class token.
        roots: [B, N] int64 in [0, N), from `background_merge`.
        q_weight, k_weight: [D, D]. q_bias, k_bias: [D].
        num_keep: clusters to keep per crop, 1 to N. Where a crop has fewer, the lowest empty cells
            fill up, marked in `valid`.
        strict: raise if features or cls are not finite (one more read, and a synchronization on
            GPUs). Without it NaN ranks first, so that it shows in what is kept.
        impl: "auto", "reference" or "triton"; a named one runs or raises.

    Returns:
        ReducedTokens in raster order; ties go to the lowest index. Differentiable in `features`
        (the gradient of a mean goes back to its members) and through `scores` in all tensors.

    Raises:
        ValueError: shapes, devices, `num_keep`, roots out of range (checked on the CPU), values
            that are not finite when strict, or an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: an `impl` that does not exist here.
    """
    check_features(features)
    batch, num_tokens, _ = features.shape
    check_anchor(features, cls, q_weight, q_bias, k_weight, k_bias)
    check_indices("roots", roots, (batch, num_tokens), "[B, N]", high=num_tokens)
    check_device("roots", roots, features)
    check_num_keep(num_keep, num_tokens)
    resolve_impl("anchored_select", impl)
    if strict:
        check_finite(features=features, cls=cls)
    return reference.anchored_select(
        features, cls, roots, q_weight, q_bias, k_weight, k_bias, num_keep
    )
