"""ops.background_score: how strongly each patch token leans towards each of its nine neighbors."""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.ops.background_score import reference
from tokenprune.ops.common.checks import check_features, check_grid
from tokenprune.ops.common.launch import resolve_impl, tokens_obstacle
from tokenprune.ops.common.precision import without_autocast
from tokenprune.ops.common.weights import AffinityHead, takes_typed_weights


@overload
def background_score(
    features: Tensor, grid_size: tuple[int, int], head: AffinityHead, *, impl: str = ...
) -> Tensor: ...


@overload
def background_score(
    features: Tensor,
    grid_size: tuple[int, int],
    dw_weight: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    *,
    impl: str = ...,
) -> Tensor: ...


@takes_typed_weights
def background_score(
    features: Tensor,
    grid_size: tuple[int, int],
    dw_weight: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    *,
    impl: str = "auto",
) -> Tensor:
    r"""Affinity logits of every patch token towards its 3x3 neighborhood.

    Background Token Pruning of GeoLLaVA-8K (arXiv 2505.21375, section 3.2): a depth-wise 3x3
    convolution (zero padding, no bias) and a 1x1 convolution to nine outputs.

    Args:
        features: [B, N, D] patch tokens in raster order, float32, bfloat16, float16 or float64.
            Strided views such as `tokens[:, 1:]` are taken as they are.
        grid_size: (rows, cols) with rows * cols == N.
        dw_weight: [D, 1, 3, 3] depth-wise kernel.
        pw_weight: [9, D, 1, 1] point-wise kernel.
        pw_bias: [9]. In place of the three an `AffinityHead`, as `head` if by keyword.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            takes N up to 4,096, and no float64.

    Returns:
        [B, N, 9] logits, float32 (float64 for float64 features), neighbors in row-major order
        from (-1, -1) to (1, 1). Differentiable in all tensors.

    Raises:
        ValueError: shapes, devices, or an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.

    Formula:
        For the nine offsets $o \in \{-1, 0, 1\}^2$ in row-major order, with $x$ zero beyond the
        border, the depth-wise kernel $W \in \mathbb{R}^{D \times 3 \times 3}$, the point-wise
        kernel $P \in \mathbb{R}^{9 \times D}$ and the bias $\beta$,

        $$\ell_{i,o} = \beta_o + \sum_{c=1}^{D} P_{o,c} \sum_{t \in \{-1,0,1\}^2}
        W_{c,t}\, x_{i+t,\,c}.$$

    Cost:
        $81\,N D$ products: the two convolutions are one product of each token with 81 vectors,
        whose results are shifted and added. The features are read once. On a CPU in float32 they
        are two convolutions, of $18\,N D$ products.

    Backward:
        yes

    Example:
        ```python
        import torch

        from tokenprune import ops

        head = ops.AffinityHead(
            torch.randn(64, 1, 3, 3), torch.randn(9, 64, 1, 1), torch.zeros(9)
        )
        logits = ops.background_score(torch.randn(2, 576, 64), (24, 24), head)
        assert logits.shape == (2, 576, 9)
        ```
    """
    check_features(features)
    check_grid(grid_size, features.shape[1])
    head = AffinityHead(dw_weight, pw_weight, pw_bias)
    head.check(features)
    obstacle = tokens_obstacle("background_score", features)
    if resolve_impl(impl, obstacle, on_gpu=features.is_cuda) == "triton":
        return _triton(features, grid_size, head)
    return reference.background_score(features, grid_size, head)


@without_autocast
def _triton(features: Tensor, grid_size: tuple[int, int], head: AffinityHead) -> Tensor:
    taps = reference.tap_weights(head, features.dtype)
    return _background_score(features, taps, head.bias, *grid_size)


@torch.library.custom_op("tokenprune::background_score", mutates_args=())
def _background_score(features: Tensor, taps: Tensor, bias: Tensor, rows: int, cols: int) -> Tensor:
    from tokenprune.ops.background_score import kernel

    return kernel.launch_score(features, (rows, cols), taps, bias)


@_background_score.register_fake
def _(features: Tensor, taps: Tensor, bias: Tensor, rows: int, cols: int) -> Tensor:
    return features.new_empty(*features.shape[:2], 9, dtype=torch.float32)


@torch.library.custom_op("tokenprune::background_score_bwd", mutates_args=())
def _background_score_bwd(grads: Tensor, taps: Tensor, rows: int, cols: int) -> Tensor:
    from tokenprune.ops.background_score import kernel

    return kernel.launch_score_bwd(grads, (rows, cols), taps)


@_background_score_bwd.register_fake
def _(grads: Tensor, taps: Tensor, rows: int, cols: int) -> Tensor:
    return taps.new_empty(*grads.shape[:2], taps.shape[1])


class _Inputs(NamedTuple):
    """What `_background_score` takes, by name; as gradients, None for what has none."""

    features: Any = None
    taps: Any = None
    bias: Any = None
    rows: Any = None
    cols: Any = None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    given = _Inputs(*inputs)
    ctx.save_for_backward(given.features, given.taps)
    ctx.grid_size, ctx.bias_dtype = (given.rows, given.cols), given.bias.dtype


def _backward(ctx: Any, grads: Tensor) -> _Inputs:
    features, taps = ctx.saved_tensors
    wanted = _Inputs(*ctx.needs_input_grad)
    grad_features = grad_taps = grad_bias = None
    if wanted.features:
        grad_features = _background_score_bwd(grads, taps, *ctx.grid_size)
    if wanted.taps:
        spread = spread_to_taps(grads, ctx.grid_size).flatten(0, 1)
        tokens = features.flatten(0, 1).to(spread.dtype)
        grad_taps = (spread.T @ tokens).to(taps.dtype)
    if wanted.bias:
        grad_bias = grads.sum((0, 1)).to(ctx.bias_dtype)
    return _Inputs(features=grad_features, taps=grad_taps, bias=grad_bias)


def spread_to_taps(grads: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """[B, N, 9] gradient of the logits -> [B, N, 81] of the products that were added up."""
    rows, cols = grid_size
    framed = functional.pad(grads.unflatten(1, grid_size), (0, 0, 1, 1, 1, 1))
    taps = [
        framed[:, 2 - i : 2 - i + rows, 2 - j : 2 - j + cols] for i in range(3) for j in range(3)
    ]
    return torch.stack(taps, dim=3).reshape(len(grads), rows * cols, 81)


_background_score.register_autograd(_backward, setup_context=_setup)
