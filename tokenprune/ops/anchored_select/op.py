"""ops.anchored_select: the clusters that the class token looks for."""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from tokenprune.ops.anchored_select import reference
from tokenprune.ops.anchored_select.selection import (
    Selection,
    save_selection,
    selection_gradients,
)
from tokenprune.ops.common.checks import (
    check_cls,
    check_device,
    check_features,
    check_finite,
    check_indices,
)
from tokenprune.ops.common.launch import resolve_impl, tokens_obstacle
from tokenprune.ops.common.precision import without_autocast
from tokenprune.ops.common.quotas import Quotas
from tokenprune.ops.common.weights import Anchor, takes_typed_weights
from tokenprune.tokens import ReducedTokens


@overload
def anchored_select(
    features: Tensor,
    cls: Tensor,
    roots: Tensor,
    anchor: Anchor,
    num_keep: int | Tensor,
    *,
    strict: bool = ...,
    impl: str = ...,
) -> ReducedTokens: ...


@overload
def anchored_select(
    features: Tensor,
    cls: Tensor,
    roots: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    num_keep: int | Tensor,
    *,
    strict: bool = ...,
    impl: str = ...,
) -> ReducedTokens: ...


@takes_typed_weights
def anchored_select(
    features: Tensor,
    cls: Tensor,
    roots: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    num_keep: int | Tensor,
    *,
    strict: bool = False,
    impl: str = "auto",
) -> ReducedTokens:
    r"""The `num_keep` cluster means per crop that answer best to the class token.

    Anchored Token Selection of GeoLLaVA-8K (arXiv 2505.21375, section 3.2): single head, no layer
    norm, score = (Wq cls + bq) . (Wk mean + bk) / sqrt(D). Released weights pass an encoder layer's
    value projection as Wk.

    Args:
        features: [B, N, D] patch tokens, float32, bfloat16, float16 or float64.
        cls: [B, D] class token.
        roots: [B, N] int64 in [0, N), from `background_merge`.
        q_weight, k_weight: [D, D]. q_bias, k_bias: [D]. In place of the four an `Anchor`, as
            `anchor` if by keyword.
        num_keep: clusters to keep per crop, 1 to N. Where a crop has fewer, the lowest empty cells
            fill up, marked in `valid`. An int tensor [B] gives each crop a quota of its own, 0 to
            N: slots then come packed with `cu_seqlens` (its values are read on the host: keep it on
            the CPU to spare a synchronization).
        strict: raise if features or cls are not finite (one more read, and a synchronization on
            GPUs). Without it NaN ranks first, so that it shows in what is kept.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            takes N up to 4,096, and no float64.

    Returns:
        ReducedTokens in raster order; ties go to the lowest index. Differentiable in `features`
        (the gradient of a mean goes back to its members) and through `scores` in all tensors.

    Raises:
        ValueError: shapes, devices, `num_keep`, roots out of range (checked on the CPU), values
            that are not finite when strict, or an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.

    Formula:
        With the clusters $C_c = \{i : r(i) = c\}$ and the class token $z$,

        $$m_c = \frac{1}{|C_c|} \sum_{i \in C_c} x_i, \qquad
        s_c = \frac{(W_q z + b_q)^\top (W_k m_c + b_k)}{\sqrt D}
        = \frac{1}{|C_c|} \sum_{i \in C_c} \left( \frac{q^\top W_k}{\sqrt D}\, x_i
        + \frac{q^\top b_k}{\sqrt D} \right),$$

        where $q = W_q z + b_q$. The K clusters of largest $s_c$ come out as their means.

    Cost:
        $D^2$ products per crop for the one vector, $N D$ for the scores of tokens, a sort of N, and
        the means of the K kept clusters alone.

    Backward:
        yes

    Example:
        ```python
        import torch

        from tokenprune import ops

        features, cls = torch.randn(2, 576, 64), torch.randn(2, 64)
        roots = torch.arange(576).repeat(2, 1) // 8 * 8  # runs of eight tokens
        anchor = ops.Anchor(
            torch.randn(64, 64), torch.zeros(64), torch.randn(64, 64), torch.zeros(64)
        )
        kept = ops.anchored_select(features, cls, roots, anchor, 24)
        assert kept.features.shape == (2, 24, 64)
        assert (kept.counts == 8).all()
        ```
    """
    check_features(features)
    batch, num_tokens, _ = features.shape
    check_cls(cls, features)
    anchor = Anchor(q_weight, q_bias, k_weight, k_bias)
    anchor.check(features)
    check_indices("roots", roots, (batch, num_tokens), "[B, N]", high=num_tokens)
    check_device("roots", roots, features)
    quotas = Quotas.of(num_keep, features)
    obstacle = tokens_obstacle("anchored_select", features)
    chosen = resolve_impl(impl, obstacle, on_gpu=features.is_cuda)
    if strict:
        check_finite(features=features, cls=cls)
    if chosen == "triton":
        return _triton(features, cls, roots, anchor, quotas)
    return reference.anchored_select(features, cls, roots, anchor, quotas)


@without_autocast
def _triton(
    features: Tensor, cls: Tensor, roots: Tensor, anchor: Anchor, quotas: Quotas
) -> ReducedTokens:
    direction = reference.anchor_direction(cls, anchor, torch.float32)
    selection = _anchored_select(features, *direction, roots, *quotas)
    return Selection(*selection).reduced(quotas)


@torch.library.custom_op("tokenprune::anchored_select", mutates_args=())
def _anchored_select(
    features: Tensor,
    anchors: Tensor,
    offsets: Tensor,
    roots: Tensor,
    num_keep: int,
    cu_seqlens: Tensor | None,
    total: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from tokenprune.ops.anchored_select import kernel

    token_scores = kernel.launch_anchor_scores(features, anchors, offsets)
    quotas = Quotas(num_keep, cu_seqlens, total)
    return kernel.launch_select(features, roots.int(), token_scores, quotas, 0, False)


@_anchored_select.register_fake
def _(
    features: Tensor,
    anchors: Tensor,
    offsets: Tensor,
    roots: Tensor,
    num_keep: int,
    cu_seqlens: Tensor | None,
    total: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return Selection.empty(features, Quotas(num_keep, cu_seqlens, total))


class _Inputs(NamedTuple):
    """What `_anchored_select` takes, by name; as gradients, None for what has none."""

    features: Any = None
    anchors: Any = None
    offsets: Any = None
    roots: Any = None
    num_keep: Any = None
    cu_seqlens: Any = None
    total: Any = None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given = _Inputs(*inputs)
    save_selection(ctx, given.anchors, given.cu_seqlens, Selection(*output))


def _backward(ctx: Any, *grads: Tensor | None) -> _Inputs:
    return _Inputs(**selection_gradients(ctx, Selection(*grads))._asdict())


_anchored_select.register_autograd(_backward, setup_context=_setup)
