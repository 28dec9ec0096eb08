"""ops.dpp_select: relevant tokens that do not repeat each other."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.checks import check_features, check_finite, check_shape
from tokenprune.ops.common.launch import resolve_impl, tokens_obstacle
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.ops.common.quotas import Quotas
from tokenprune.ops.common.ranked import keep_first
from tokenprune.ops.dpp_select import reference
from tokenprune.tokens import ReducedTokens


def dpp_select(
    features: Tensor,
    num_keep: int | Tensor,
    quality: Tensor | None = None,
    *,
    strict: bool = False,
    impl: str = "auto",
) -> ReducedTokens:
    r"""The `num_keep` tokens per crop of largest determinant, chosen greedily.

    MAP inference of a determinantal point process as in CDPruner (arXiv 2506.10967),
    by incremental Cholesky (arXiv 1709.05135): the kernel is L_ij = q_i cos(f_i, f_j) q_j, and the
    next token is the one that multiplies det(L) of the kept tokens most.

    Args:
        features: [B, N, D] patch tokens, float32, bfloat16, float16 or float64.
        num_keep: tokens to keep per crop, 1 to N. An int tensor [B] gives each crop a quota of its
            own, 0 to N: slots then come packed with `cu_seqlens`.
        quality: [B, N] floating point, not negative: how much each token is wanted; 1 by default.
        strict: raise if features or quality are not finite (one more read, and a synchronization
            on GPUs). Without it a crop that holds NaN keeps whatever tokens.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            does the whole batch in one launch, with N up to 1,024, and takes no float64.

    Returns:
        ReducedTokens in raster order; `scores` are the factors by which tokens multiplied the
        determinant. Where none can grow it any more (K beyond the rank of the kernel) the factor is
        0 and the lowest index is taken. Differentiable in `features` where they are kept.

    Raises:
        ValueError: shapes, devices, `num_keep`, values that are not finite when strict, or an
            unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.

    Formula:
        With $L_{ij} = q_i \cos(x_i, x_j)\, q_j$ and $S = \varnothing$ at first, K times

        $$S \leftarrow S \cup \left\{\arg\max_{j \notin S}
        \frac{\det L_{S \cup \{j\}}}{\det L_S}\right\}, \qquad
        \frac{\det L_{S \cup \{j\}}}{\det L_S} = L_{jj} - \lVert c_j \rVert^2,$$

        where $c_j$ is what the Cholesky factor of $L_S$ has in column j, one entry longer at each
        step.

    Cost:
        $N D$ products for a row of L, of which about $1.25\,K$ are computed at first, and $K^2 N$
        for the factor. Memory: $K N$, and up to $N^2$ for rows, per crop in work.

    Backward:
        what is kept

    Example:
        ```python
        import torch

        from tokenprune import ops

        features = torch.randn(2, 576, 64)
        kept = ops.dpp_select(features, 24, quality=torch.rand(2, 576))
        assert kept.features.shape == (2, 24, 64)
        assert (kept.scores > 0).all()
        ```
    """
    check_features(features)
    if quality is None:
        dtype = wide_dtype(features.dtype)
        quality = torch.ones(features.shape[:2], dtype=dtype, device=features.device)
    check_shape("quality", quality, tuple(features.shape[:2]), "[B, N]", like=features)
    quotas = Quotas.of(num_keep, features)
    obstacle = tokens_obstacle("dpp_select", features)
    chosen = resolve_impl(impl, obstacle, on_gpu=features.is_cuda)
    if strict:
        check_finite(features=features, quality=quality)
    order_of = _dpp_order if chosen == "triton" else _reference_order
    order, gains = order_of(features.detach(), quality.detach(), quotas.largest)
    return keep_first(features, order, gains, quotas)


@torch.library.custom_op("tokenprune::dpp_order", mutates_args=())
def _dpp_order(features: Tensor, quality: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    from tokenprune.ops.dpp_select import kernel

    return kernel.launch(features, quality, num_keep)


@torch.library.custom_op("tokenprune::dpp_reference_order", mutates_args=())
def _reference_order(features: Tensor, quality: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    """One piece to torch.compile: what it computes next depends on what it found."""
    return reference.dpp_order(features, quality, num_keep)


@_dpp_order.register_fake
def _(features: Tensor, quality: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    shape = (features.shape[0], num_keep)
    return (
        features.new_empty(shape, dtype=torch.int64),
        features.new_empty(shape, dtype=torch.float32),
    )


@_reference_order.register_fake
def _(features: Tensor, quality: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    shape = (features.shape[0], num_keep)
    return (
        features.new_empty(shape, dtype=torch.int64),
        features.new_empty(shape, dtype=wide_dtype(features.dtype)),
    )
