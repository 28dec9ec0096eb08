"""Greedy selections: ops.max_min_select, dpp_select, coverage_select and mmr_select.

Each keeps, one by one, the token that its objective ranks highest given those kept before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.checks import (
    check_features,
    check_finite,
    check_int,
    check_shape,
    check_tensor,
)
from tokenprune.ops.common.launch import resolve_impl, tokens_obstacle
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.ops.common.quotas import Quotas
from tokenprune.ops.common.ranked import keep_first
from tokenprune.ops.greedy_select import reference
from tokenprune.tokens import ReducedTokens


def max_min_select(
    features: Tensor, num_keep: int | Tensor, *, strict: bool = False, impl: str = "auto"
) -> ReducedTokens:
    r"""The `num_keep` tokens per crop that lie farthest from each other, chosen greedily.

    Max-min diversity as in DivPrune (arXiv 2503.02175, section 3.2): the distance is 1 - cosine
    similarity, the first token is the one whose nearest other token is farthest, and each further
    one is farthest from the nearest of those already kept.

    Args:
        features: [B, N, D] patch tokens, float32, bfloat16, float16 or float64.
        num_keep: tokens to keep per crop, 1 to N. An int tensor [B] gives each crop a quota of its
            own, 0 to N: slots then come packed with `cu_seqlens`.
        strict: raise if features are not finite (one more read, and a synchronization on GPUs).
            Without it a crop that holds NaN keeps whatever tokens.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            does the whole batch in one launch, with N up to 4,096, and takes no float64.

    Returns:
        ReducedTokens in raster order; `scores` are the distances at which tokens were chosen, and
        equal distances go to the lowest index. Differentiable in `features` where they are kept.

    Raises:
        ValueError: shapes, `num_keep`, values that are not finite when strict, an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.

    Formula:
        With $d_{ij} = 1 - \cos(x_i, x_j)$,

        $$s_1 = \arg\max_i\, \min_{j \ne i} d_{ij}, \qquad
        s_k = \arg\max_{i \notin \{s_1, \ldots, s_{k-1}\}}\, \min_{l < k} d_{i s_l}.$$

    Cost:
        $N^2 D$ products for all pairs, which the first choice needs, and $K N$ comparisons. Memory:
        $N^2$ per crop in work on a CPU.

    Backward:
        what is kept

    Example:
        ```python
        import torch

        from tokenprune import ops

        features = torch.randn(2, 576, 64)
        kept = ops.max_min_select(features, torch.tensor([24, 8]))  # a quota for each crop
        assert kept.features.shape == (32, 64)
        assert kept.cu_seqlens.tolist() == [0, 24, 32]
        ```
    """
    return _select("max_min", features, num_keep, strict, impl)


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
        features, num_keep, impl: as for `max_min_select`.
        quality: [B, N] floating point, not negative: how much each token is wanted; 1 by default.
        strict: raise if features or quality are not finite (one more read, and a synchronization
            on GPUs). Without it a crop that holds NaN keeps whatever tokens.

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
        $N D$ products for a row of L, of which about $1.25\,K$ are computed at first (all, each
        pair once, where that is most of them), and $K^2 N$ for the factor. Memory: $K N$, and up to
        $N^2$ for rows, per crop in work.

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
    return _select("dpp", features, num_keep, strict, impl, quality=quality)


def coverage_select(
    features: Tensor,
    num_keep: int | Tensor,
    weights: Tensor | None = None,
    *,
    strict: bool = False,
    impl: str = "auto",
) -> ReducedTokens:
    r"""The `num_keep` tokens per crop that cover the others best, chosen greedily.

    Weighed coverage as in SCOPE (arXiv 2510.24214), which without weights is the greedy solution of
    facility location: a token is covered as far as it is similar to one that is kept, and the next
    token is the one that adds most to what is covered, times its weight.

    Args:
        features, num_keep, impl: as for `max_min_select`.
        weights: [B, N] floating point, not negative: what a token's gain counts; 1 by default.
        strict: raise if features or weights are not finite (one more read, and a synchronization
            on GPUs). Without it a crop that holds NaN keeps whatever tokens.

    Returns:
        ReducedTokens in raster order; `scores` are the weighed gains, and equal gains go to the
        lowest index. Differentiable in `features` where they are kept.

    Raises:
        ValueError: shapes, devices, `num_keep`, values that are not finite when strict, an unknown
            `impl`; for the reference, weights below 0.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.

    Formula:
        With how far token $i$ is covered, $c_i = \max(0, \max_{s \in S} \cos(x_i, x_s))$, which is
        0 at first, K times

        $$S \leftarrow S \cup \left\{\arg\max_{j \notin S}\; w_j
        \sum_{i=1}^{N} \max\left(0,\; \cos(x_i, x_j) - c_i\right)\right\}.$$

    Cost:
        $N^2 D$ products for all pairs, once, and at most $K N^2$ comparisons: the reference
        computes a gain again only where the one known before, which bounds it, could be the
        largest. Memory: $N^2$ per crop in work, one on a CPU. A GPU works on as many crops as it
        has multiprocessors; a larger batch takes a launch for each so many.

    Backward:
        what is kept

    Example:
        ```python
        import torch

        from tokenprune import ops

        features = torch.randn(2, 576, 64)
        kept = ops.coverage_select(features, 24, weights=torch.rand(2, 576))
        assert kept.features.shape == (2, 24, 64)
        ```
    """
    return _select("coverage", features, num_keep, strict, impl, weights=weights)


def mmr_select(
    features: Tensor,
    num_keep: int | Tensor,
    relevance: Tensor,
    *,
    mmr_lambda: float = 0.5,
    parallel_k: int = 1,
    strict: bool = False,
    impl: str = "auto",
) -> ReducedTokens:
    r"""The `num_keep` tokens per crop that are relevant and unlike those kept before.

    Maximal marginal relevance, as IDPruner (arXiv 2602.13315) prunes by it.

    Args:
        features, num_keep, impl: as for `max_min_select`.
        relevance: [B, N] floating point.
        mmr_lambda: weight of relevance against likeness, in [0, 1].
        parallel_k: tokens chosen at a time, at least 1. More are faster, and may be alike.
        strict: raise if features or relevance are not finite (one more read, and a synchronization
            on GPUs). Without it a crop that holds NaN keeps whatever tokens.

    Returns:
        ReducedTokens in raster order; `scores` are the values that chose tokens, and equal values
        go to the lowest index. Differentiable in `features` where they are kept.

    Raises:
        ValueError: shapes, devices, `num_keep`, `mmr_lambda`, `parallel_k`, values that are not
            finite when strict, or an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.

    Formula:
        With $m$ the relevance, $S$ holds the P = `parallel_k` tokens of largest $m$ at first, with
        the value $\lambda\, m_i$, and then, until $|S| = K$, grows by the P tokens $i \notin S$ of
        largest

        $$\lambda\, m_i - (1 - \lambda) \max_{s \in S} \cos(x_i, x_s).$$

    Cost:
        $N D$ products for a row of cosines, of which about $1.25\,K$ are computed at first (all,
        each pair once, where that is most of them), and $K N$ comparisons. Memory: up to $N^2$ per
        crop in work on a CPU.

    Backward:
        what is kept

    Example:
        ```python
        import torch

        from tokenprune import ops

        features = torch.randn(2, 576, 64)
        kept = ops.mmr_select(features, 24, torch.rand(2, 576), mmr_lambda=0.7)
        assert kept.features.shape == (2, 24, 64)
        ```
    """
    if not 0 <= mmr_lambda <= 1:
        raise ValueError(f"mmr_lambda must lie in [0, 1], got {mmr_lambda}")
    check_int("parallel_k", parallel_k, low=1)
    check_tensor("relevance", relevance)
    return _select(
        "mmr", features, num_keep, strict, impl, mmr_lambda, parallel_k, relevance=relevance
    )


def _select(
    objective: str,
    features: Tensor,
    num_keep: int | Tensor,
    strict: bool,
    impl: str,
    mmr_lambda: float = 0.0,
    parallel_k: int = 1,
    **named: Tensor | None,
) -> ReducedTokens:
    """`named` holds what the objective weighs tokens by, [B, N], under its public name."""
    check_features(features)
    weights = None
    for name, value in named.items():
        if value is not None:
            check_shape(name, value, tuple(features.shape[:2]), "[B, N]", like=features)
            weights = value.detach()
    quotas = Quotas.of(num_keep, features)
    obstacle = tokens_obstacle(f"{objective}_select", features)
    chosen = resolve_impl(impl, obstacle, on_gpu=features.is_cuda)
    if strict:
        check_finite(features=features, **named)
    arguments = objective, quotas.largest, mmr_lambda, parallel_k
    if chosen == "triton":
        order, values = _greedy_order(features.detach(), weights, *arguments)
    elif torch.compiler.is_compiling():
        order, values = _reference_order(features.detach(), weights, *arguments)
    else:  # the first call of a `custom_op` imports the compiler, which takes 130 MiB
        order, values = reference.greedy_order(features.detach(), weights, *arguments)
    return keep_first(features, order, values, quotas)


@torch.library.custom_op("tokenprune::greedy_order", mutates_args=())
def _greedy_order(
    features: Tensor,
    weights: Tensor | None,
    objective: str,
    num_keep: int,
    mmr_lambda: float,
    parallel_k: int,
) -> tuple[Tensor, Tensor]:
    from tokenprune.ops.greedy_select import kernel

    return kernel.launch(features, weights, objective, num_keep, mmr_lambda, parallel_k)


@torch.library.custom_op("tokenprune::greedy_reference_order", mutates_args=())
def _reference_order(
    features: Tensor,
    weights: Tensor | None,
    objective: str,
    num_keep: int,
    mmr_lambda: float,
    parallel_k: int,
) -> tuple[Tensor, Tensor]:
    """One piece to torch.compile: what it computes next depends on what it found."""
    return reference.greedy_order(features, weights, objective, num_keep, mmr_lambda, parallel_k)


@_greedy_order.register_fake
def _(
    features: Tensor,
    weights: Tensor | None,
    objective: str,
    num_keep: int,
    mmr_lambda: float,
    parallel_k: int,
) -> tuple[Tensor, Tensor]:
    shape = (features.shape[0], num_keep)
    return (
        features.new_empty(shape, dtype=torch.int64),
        features.new_empty(shape, dtype=torch.float32),
    )


@_reference_order.register_fake
def _(
    features: Tensor,
    weights: Tensor | None,
    objective: str,
    num_keep: int,
    mmr_lambda: float,
    parallel_k: int,
) -> tuple[Tensor, Tensor]:
    shape = (features.shape[0], num_keep)
    return (
        features.new_empty(shape, dtype=torch.int64),
        features.new_empty(shape, dtype=wide_dtype(features.dtype)),
    )
