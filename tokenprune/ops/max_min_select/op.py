"""ops.max_min_select: the most diverse tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.checks import check_features, check_finite
from tokenprune.ops.common.launch import resolve_impl, tokens_obstacle
from tokenprune.ops.common.quotas import Quotas
from tokenprune.ops.common.ranked import keep_first
from tokenprune.ops.max_min_select import reference
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
            does the whole batch in one launch, with N up to 1,024, and takes no float64.

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
    check_features(features)
    quotas = Quotas.of(num_keep, features)
    obstacle = tokens_obstacle("max_min_select", features)
    chosen = resolve_impl(impl, obstacle, on_gpu=features.is_cuda)
    if strict:
        check_finite(features=features)
    order_of = _max_min_order if chosen == "triton" else reference.max_min_order
    order, distances = order_of(features.detach(), quotas.largest)
    return keep_first(features, order, distances, quotas)


@torch.library.custom_op("tokenprune::max_min_order", mutates_args=())
def _max_min_order(features: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    from tokenprune.ops.max_min_select import kernel

    return kernel.launch(features, num_keep)


@_max_min_order.register_fake
def _(features: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    shape = (features.shape[0], num_keep)
    return (
        features.new_empty(shape, dtype=torch.int64),
        features.new_empty(shape, dtype=torch.float32),
    )
