"""Means of chosen clusters, and of no others."""

from __future__ import annotations

from torch import Tensor

from tokenprune.ops.precision import wide_dtype, wide_matmul


def cluster_mean(features: Tensor, roots: Tensor, keep_indices: Tensor) -> Tensor:
    """Mean of the tokens whose root is kept.

    Args:
        features: [B, N, D]. Differentiable: a mean's gradient goes back to its members.
        roots: [B, N] int64, each token's root.
        keep_indices: [B, K] int64, the roots whose means are wanted.

    Returns:
        [B, K, D] in the dtype of `features`, summed in float32 and rounded once; zero where no
        token has that root.
    """
    members = (roots[:, None, :] == keep_indices[:, :, None]).to(wide_dtype(features.dtype))
    counts = members.sum(-1, keepdim=True).clamp(min=1)
    return (wide_matmul(members, features) / counts).to(features.dtype)
