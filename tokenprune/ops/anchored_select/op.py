"""ops.anchored_select: the clusters that the class token looks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenprune.ops.anchored_select import reference
from tokenprune.ops.cluster_mean.op import gradient_of_members
from tokenprune.ops.common.checks import (
    check_device,
    check_features,
    check_finite,
    check_indices,
    check_num_keep,
    check_quotas,
    check_shape,
)
from tokenprune.ops.common.launch import grid_obstacle, resolve_impl
from tokenprune.ops.common.precision import without_autocast
from tokenprune.tokens import ReducedTokens, crops_of, cu_seqlens_of


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
    num_keep: int | Tensor,
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
            fill up, marked in `valid`. An int tensor [B] gives each crop a quota of its own, 0 to
            N: slots then come packed with `cu_seqlens` (its values are read on the host: keep it on
            the CPU to spare a synchronization).
        strict: raise if features or cls are not finite (one more read, and a synchronization on
            GPUs). Without it NaN ranks first, so that it shows in what is kept.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            takes D in multiples of 16, N up to 1,024, and no float64.

    Returns:
        ReducedTokens in raster order; ties go to the lowest index. Differentiable in `features`
        (the gradient of a mean goes back to its members) and through `scores` in all tensors.

    Raises:
        ValueError: shapes, devices, `num_keep`, roots out of range (checked on the CPU), values
            that are not finite when strict, or an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.
    """
    check_features(features)
    batch, num_tokens, _ = features.shape
    check_anchor(features, cls, q_weight, q_bias, k_weight, k_bias)
    check_indices("roots", roots, (batch, num_tokens), "[B, N]", high=num_tokens)
    check_device("roots", roots, features)
    quotas = resolve_quotas(num_keep, features)
    obstacle = grid_obstacle("anchored_select", features)
    chosen = resolve_impl(impl, obstacle, on_gpu=features.is_cuda)
    if strict:
        check_finite(features=features, cls=cls)
    if chosen == "triton":
        return _triton(features, cls, roots, q_weight, q_bias, k_weight, k_bias, quotas)
    return reference.anchored_select(
        features, cls, roots, q_weight, q_bias, k_weight, k_bias, num_keep
    )


def resolve_quotas(num_keep: int | Tensor, features: Tensor) -> tuple[int, Tensor | None, int]:
    """(num_keep, cu_seqlens, slots in all); quotas are checked and moved to the features."""
    batch, num_tokens, _ = features.shape
    if not isinstance(num_keep, Tensor):
        check_num_keep(num_keep, num_tokens)
        return num_keep, None, batch * num_keep
    total = sum(check_quotas(num_keep, features))
    return 0, cu_seqlens_of(num_keep.to(features.device)), total


@without_autocast
def _triton(
    features: Tensor,
    cls: Tensor,
    roots: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    quotas: tuple[int, Tensor | None, int],
) -> ReducedTokens:
    anchors, offsets = reference.anchor_vector(
        cls, q_weight, q_bias, k_weight, k_bias, torch.float32
    )
    means, keep_indices, valid, roots, scores = _anchored_select(
        features, anchors[:, 0], offsets[:, 0], roots, *quotas
    )
    return ReducedTokens(means, keep_indices, valid, roots, scores, None, quotas[1])


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
    return kernel.launch_select(
        features, roots.int(), token_scores, num_keep, cu_seqlens, total, 0, False
    )


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
    return empty_result(features, num_keep, cu_seqlens, total)


def empty_result(
    features: Tensor, num_keep: int, cu_seqlens: Tensor | None, total: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(means, keep_indices, valid, roots, scores) without contents, for fakes."""
    batch, num_tokens, width = features.shape
    slots = (batch, num_keep) if cu_seqlens is None else (total,)
    return (
        features.new_empty(*slots, width),
        features.new_empty(slots, dtype=torch.int64),
        features.new_empty(slots, dtype=torch.bool),
        features.new_empty(batch, num_tokens, dtype=torch.int64),
        features.new_empty(slots, dtype=torch.float32),
    )


def save_selection(
    ctx: Any, anchors: Tensor, cu_seqlens: Tensor | None, output: tuple[Tensor, ...]
) -> None:
    """Keeps what `selection_backward` needs."""
    means, keep_indices, valid, roots, _ = output
    ctx.mark_non_differentiable(keep_indices, valid, roots)
    ctx.save_for_backward(anchors, cu_seqlens, means, keep_indices, valid, roots)


def selection_backward(
    ctx: Any, grad_means: Tensor | None, grad_scores: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (features, anchors, offsets), given those of the means and of their scores.

    A member of a cluster receives an equal share of its mean's gradient, and of its score's along
    the anchor; the score of a mean is affine in the mean.
    """
    anchors, cu_seqlens, means, keep_indices, valid, roots = ctx.saved_tensors
    batch, width = anchors.shape
    means, cells, valid = means.reshape(-1, width), keep_indices.flatten(), valid.flatten()
    if cu_seqlens is None:
        crops = torch.arange(batch, device=roots.device)
        crops = crops[:, None].expand_as(keep_indices).flatten()
    else:
        crops = crops_of(cu_seqlens, len(cells))

    wide = torch.zeros_like(means, dtype=torch.float32)
    if grad_means is not None:
        wide = wide + grad_means.reshape_as(means).float()
    of_scores = torch.zeros_like(valid, dtype=torch.float32)
    if grad_scores is not None:
        of_scores = torch.where(valid, grad_scores.flatten(), of_scores)
    wide = wide + of_scores[:, None] * anchors[crops]
    sizes = torch.zeros_like(roots).scatter_add_(1, roots, torch.ones_like(roots))
    shares = wide / sizes[crops, cells].clamp(min=1)[:, None]
    grad_features = gradient_of_members(shares, roots, crops, cells, means)
    along = of_scores[:, None] * means.float()
    grad_anchors = torch.zeros_like(anchors).index_add(0, crops, along)
    grad_offsets = anchors.new_zeros(batch).index_add(0, crops, of_scores)
    return grad_features, grad_anchors, grad_offsets


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    save_selection(ctx, inputs[1], inputs[5], output)


def _backward(
    ctx: Any, grad_means: Tensor, _1: None, _2: None, _3: None, grad_scores: Tensor
) -> tuple[Tensor | None, ...]:
    return (*selection_backward(ctx, grad_means, grad_scores), None, None, None, None)


_anchored_select.register_autograd(_backward, setup_context=_setup)
