"""ops.background_anchored: background merging and anchored selection as one operator."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from tokenprune.ops.anchored_select.reference import anchor_direction
from tokenprune.ops.anchored_select.selection import (
    Selection,
    save_selection,
    selection_gradients,
)
from tokenprune.ops.background_anchored import reference
from tokenprune.ops.background_merge.op import check_merge_options
from tokenprune.ops.background_score.reference import tap_weights
from tokenprune.ops.common.checks import check_cls, check_features, check_finite, check_grid
from tokenprune.ops.common.launch import resolve_impl, tokens_obstacle
from tokenprune.ops.common.precision import without_autocast
from tokenprune.ops.common.quotas import Quotas
from tokenprune.ops.common.weights import AffinityHead, Anchor, takes_typed_weights
from tokenprune.tokens import ReducedTokens

ASSIGNMENTS = ("hard", "straight_through", "soft")


@overload
def background_anchored(
    features: Tensor,
    cls: Tensor,
    grid_size: tuple[int, int],
    head: AffinityHead,
    anchor: Anchor,
    num_keep: int | Tensor,
    *,
    max_iters: int = ...,
    cycles: str = ...,
    strict: bool = ...,
    assignment: str = ...,
    temperature: float = ...,
    impl: str = ...,
) -> ReducedTokens: ...


@overload
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
    num_keep: int | Tensor,
    *,
    max_iters: int = ...,
    cycles: str = ...,
    strict: bool = ...,
    assignment: str = ...,
    temperature: float = ...,
    impl: str = ...,
) -> ReducedTokens: ...


@takes_typed_weights
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
    num_keep: int | Tensor,
    *,
    max_iters: int = 12,
    cycles: str = "official",
    strict: bool = False,
    assignment: str = "hard",
    temperature: float = 1.0,
    impl: str = "auto",
) -> ReducedTokens:
    r"""`background_score`, `background_merge` and `anchored_select` in one call.

    The whole token reduction of GeoLLaVA-8K (arXiv 2505.21375, section 3.2).

    Args:
        features: [B, N, D] patch tokens in raster order, float32, bfloat16, float16 or float64.
        cls: [B, D] class token.
        grid_size: (rows, cols) with rows * cols == N.
        dw_weight: [D, 1, 3, 3]. pw_weight: [9, D, 1, 1]. pw_bias: [9]. In place of the three an
            `AffinityHead`, as `head` if by keyword.
        q_weight, k_weight: [D, D]. q_bias, k_bias: [D]. In place of the four an `Anchor`, as
            `anchor` if by keyword.
        num_keep: clusters to keep per crop, 1 to N, or a quota for each as in `anchored_select`.
        max_iters, cycles: as in `background_merge`.
        strict: as in `anchored_select`.
        assignment: "hard" averages whole tokens, as published, and gives the affinity head no
            gradient. "soft" weighs each token by its chance to end at the kept root when pointers
            are followed at random (see `soft`); "straight_through" has the hard result, to the bit,
            and the soft one's gradient. Which roots are kept is the hard choice in all of them.
        temperature: of the softmax over neighbors in "soft" and "straight_through", above 0; the
            lower, the closer to hard.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            takes four launches, N up to 4,096, and no float64.

    Returns:
        ReducedTokens with `grid_size` set. Differentiable in `features`, and unless `assignment`
        is hard in the affinity head's weights.

    Raises:
        ValueError, TypeError, NotImplementedError: as the three operators do; an assignment that
            Triton does not have, or not with a quota per crop.

    Formula:
        `background_score`, then `background_merge`, then `anchored_select`. Under "soft" each token
        counts in the mean of a kept root $c$ with the chance $A_{ic}$ that a walk from $i$ stops
        there. With the head's probabilities $w_{i,o}$ at `temperature`, 0 being the token's own
        place,

        $$A_{ic} = w_{i,0}\,[i = c] + \sum_{o \ne 0} w_{i,o}\, A_{n(i,o),\,c}, \qquad
        y_c = \frac{\sum_i A_{ic}\, x_i}{\sum_i A_{ic}},$$

        in rows + cols steps from the hard assignment; a root on a cycle stops every walk.
        "straight_through" has the hard $y_c$ and this gradient.

    Cost:
        That of the three. Four launches on a GPU: scores of tokens come with the affinity, so that
        the features are read once for both. "soft" takes $9 N K$ products a step and keeps a
        [N, K] matrix for each.

    Backward:
        yes

    Example:
        ```python
        import torch

        from tokenprune import ops

        D = 64
        features, cls = torch.randn(2, 576, D, requires_grad=True), torch.randn(2, D)
        head = ops.AffinityHead(
            torch.randn(D, 1, 3, 3, requires_grad=True), torch.randn(9, D, 1, 1), torch.zeros(9)
        )
        anchor = ops.Anchor(torch.randn(D, D), torch.zeros(D), torch.randn(D, D), torch.zeros(D))
        kept = ops.background_anchored(
            features, cls, (24, 24), head, anchor, 24, assignment="straight_through"
        )
        kept.features.sum().backward()
        assert head.dw.grad is not None
        ```
    """
    check_features(features)
    check_grid(grid_size, features.shape[1])
    head = AffinityHead(dw_weight, pw_weight, pw_bias)
    head.check(features)
    check_cls(cls, features)
    anchor = Anchor(q_weight, q_bias, k_weight, k_bias)
    anchor.check(features)
    quotas = Quotas.of(num_keep, features)
    check_merge_options(max_iters, cycles)
    check_assignment(assignment, temperature, quotas)
    if assignment == "straight_through" and not torch.is_grad_enabled():
        assignment = "hard"  # the same values, for less
    obstacle = tokens_obstacle("background_anchored", features)
    if assignment != "hard":
        obstacle = NotImplementedError(
            f"assignment={assignment!r} is implemented by impl='reference' only, got impl='triton'"
        )
    chosen = resolve_impl(impl, obstacle, on_gpu=features.is_cuda)
    if strict:
        check_finite(features=features, cls=cls)
    if chosen == "triton":
        return _triton(features, cls, grid_size, head, anchor, quotas, max_iters, cycles)
    return reference.background_anchored(
        features,
        cls,
        grid_size,
        head,
        anchor,
        quotas,
        max_iters=max_iters,
        cycles=cycles,
        assignment=assignment,
        temperature=temperature,
    )


def check_assignment(assignment: str, temperature: float, quotas: Quotas) -> None:
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment must be one of {', '.join(ASSIGNMENTS)}, got {assignment!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if assignment != "hard" and quotas.cu_seqlens is not None:
        raise NotImplementedError(
            f"assignment={assignment!r} needs one num_keep for all crops, got a quota for each"
        )


@without_autocast
def _triton(
    features: Tensor,
    cls: Tensor,
    grid_size: tuple[int, int],
    head: AffinityHead,
    anchor: Anchor,
    quotas: Quotas,
    max_iters: int,
    cycles: str,
) -> ReducedTokens:
    direction = anchor_direction(cls, anchor, torch.float32)
    taps = tap_weights(head, features.dtype)
    selection = _background_anchored(
        features, *direction, taps, head.bias, *grid_size, *quotas, max_iters, cycles
    )
    return Selection(*selection).reduced(quotas, grid_size)


@torch.library.custom_op("tokenprune::background_anchored", mutates_args=())
def _background_anchored(
    features: Tensor,
    anchors: Tensor,
    offsets: Tensor,
    taps: Tensor,
    bias: Tensor,
    rows: int,
    cols: int,
    num_keep: int,
    cu_seqlens: Tensor | None,
    total: int,
    max_iters: int,
    cycles: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from tokenprune.ops.background_anchored import kernel

    quotas = Quotas(num_keep, cu_seqlens, total)
    return kernel.launch(
        features, anchors, offsets, taps, bias, (rows, cols), quotas, max_iters, cycles
    )


@_background_anchored.register_fake
def _(
    features: Tensor,
    anchors: Tensor,
    offsets: Tensor,
    taps: Tensor,
    bias: Tensor,
    rows: int,
    cols: int,
    num_keep: int,
    cu_seqlens: Tensor | None,
    total: int,
    max_iters: int,
    cycles: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return Selection.empty(features, Quotas(num_keep, cu_seqlens, total))


class _Inputs(NamedTuple):
    """What `_background_anchored` takes, by name; as gradients, None for what has none.

    Taps and bias end in an argmax, so they have none.
    """

    features: Any = None
    anchors: Any = None
    offsets: Any = None
    taps: Any = None
    bias: Any = None
    rows: Any = None
    cols: Any = None
    num_keep: Any = None
    cu_seqlens: Any = None
    total: Any = None
    max_iters: Any = None
    cycles: Any = None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given = _Inputs(*inputs)
    save_selection(ctx, given.anchors, given.cu_seqlens, Selection(*output))


def _backward(ctx: Any, *grads: Tensor | None) -> _Inputs:
    return _Inputs(**selection_gradients(ctx, Selection(*grads))._asdict())


_background_anchored.register_autograd(_backward, setup_context=_setup)
