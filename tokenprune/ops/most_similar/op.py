"""ops.most_similar: for each token its best match among others."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.checks import check_device, check_features
from tokenprune.ops.common.launch import resolve_impl, triton_obstacle
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.ops.most_similar import reference


def most_similar(queries: Tensor, keys: Tensor, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
    r"""The largest cosine similarity of each query to any key, and that key; never all pairs.

    Args:
        queries: [B, Q, D] and keys: [B, M, D] of one dtype: float32, bfloat16, float16 or float64.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            takes no float64.

    Returns:
        ([B, Q] float32, or float64 for float64; [B, Q] int64, the lowest index among equals).
        Within rounding of 1 the similarity is 1. Not differentiable.

    Raises:
        ValueError: shapes, devices, or an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.

    Formula:
        $m_i = \arg\max_j \cos(q_i, k_j)$ and $\sigma_i = \cos(q_i, k_{m_i})$, the lowest $j$ among
        equals.

    Cost:
        $Q M D$ products; memory for a block of rows, never $Q \times M$.

    Backward:
        -

    Example:
        ```python
        import torch

        from tokenprune import ops

        keys = torch.randn(2, 576, 64)
        similarity, index = ops.most_similar(2 * keys[:, :24], keys)
        assert torch.equal(index, torch.arange(24).repeat(2, 1))
        assert (similarity == 1).all()
        ```
    """
    check_features(queries)
    check_features(keys)
    if (queries.shape[0], queries.shape[2]) != (keys.shape[0], keys.shape[2]):
        raise ValueError(
            "queries [B, Q, D] and keys [B, M, D] must have the same B and D, "
            f"got {list(queries.shape)} and {list(keys.shape)}"
        )
    if queries.dtype != keys.dtype:
        raise TypeError(
            f"queries and keys must have the same dtype, got {queries.dtype} and {keys.dtype}"
        )
    check_device("queries", queries, keys)
    obstacle = triton_obstacle("most_similar", keys)
    if resolve_impl(impl, obstacle, on_gpu=keys.is_cuda) == "triton":
        return _most_similar(queries.detach(), keys.detach())
    return reference.most_similar(queries, keys)


@torch.library.custom_op("tokenprune::most_similar", mutates_args=())
def _most_similar(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    from tokenprune.ops.most_similar import kernel

    return kernel.launch(queries, keys)


@_most_similar.register_fake
def _(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    shape = queries.shape[:2]
    return (
        queries.new_empty(shape, dtype=wide_dtype(keys.dtype)),
        queries.new_empty(shape, dtype=torch.int64),
    )
