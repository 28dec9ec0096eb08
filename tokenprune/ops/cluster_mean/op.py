"""ops.cluster_mean: means of chosen clusters, and of no others."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenprune.ops.cluster_mean import reference
from tokenprune.ops.common.checks import check_features, check_indices, check_shape, check_tensor
from tokenprune.ops.common.launch import resolve_impl, triton_obstacle


def cluster_mean(
    features: Tensor,
    roots: Tensor,
    keep_indices: Tensor,
    weights: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    r"""Mean of the tokens whose root is kept; the other tokens are not read.

    Args:
        features: [B, N, D]. Differentiable: a mean's gradient goes back to its members.
        roots: [B, N] int64, each token's root.
        keep_indices: [B, K] int64, the roots whose means are wanted, each once.
        weights: [B, N] not negative, what each token counts; 1 by default.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            takes no float64, and has no gradient of the weights.

    Returns:
        [B, K, D] in the dtype of `features`, summed in float32 and rounded once; zero where no
        token has that root.

    Raises:
        ValueError: shapes, devices, indices out of range (checked on the CPU), or an unknown
            `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed, or a gradient of the weights is wanted of it.

    Formula:
        For each kept root $c$, with weights $\omega_i$ of 1 by default,

        $$y_c = \frac{\sum_{i:\, r(i) = c} \omega_i\, x_i}{\sum_{i:\, r(i) = c} \omega_i}.$$

    Cost:
        One addition of D numbers for each member of a kept cluster; other tokens are not read.

    Backward:
        yes; of weights, reference only

    Example:
        ```python
        import torch

        from tokenprune import ops

        features = torch.randn(2, 576, 64)
        roots = torch.arange(576).repeat(2, 1) // 8 * 8
        means = ops.cluster_mean(features, roots, torch.tensor([[0, 8], [16, 24]]))
        torch.testing.assert_close(means[1, 0], features[1, 16:24].mean(0))
        ```
    """
    check_features(features)
    batch, num_tokens, _ = features.shape
    check_indices("roots", roots, (batch, num_tokens), "[B, N]", high=num_tokens)
    check_tensor("keep_indices", keep_indices)
    if keep_indices.ndim != 2:
        raise ValueError(f"keep_indices must be [B, K], got shape {list(keep_indices.shape)}")
    num_keep = keep_indices.shape[1]
    check_indices("keep_indices", keep_indices, (batch, num_keep), "[B, K]", high=num_tokens)
    obstacle = triton_obstacle("cluster_mean", features)
    if weights is not None:
        check_shape("weights", weights, (batch, num_tokens), "[B, N]", like=features)
        if obstacle is None and torch.is_grad_enabled() and weights.requires_grad:
            obstacle = NotImplementedError(
                "impl='triton' of ops.cluster_mean has no gradient of the weights; "
                "use impl='reference' or weights.detach()"
            )
    if resolve_impl(impl, obstacle, on_gpu=features.is_cuda) == "triton":
        means, _ = _cluster_mean(features, roots, keep_indices, weights)
        return means
    return reference.cluster_mean(features, roots, keep_indices, weights)


@torch.library.custom_op("tokenprune::cluster_mean", mutates_args=())
def _cluster_mean(
    features: Tensor, roots: Tensor, keep_indices: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    from tokenprune.ops.cluster_mean import kernel

    return kernel.launch(features, roots, keep_indices, weights)


@_cluster_mean.register_fake
def _(
    features: Tensor, roots: Tensor, keep_indices: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    return (
        features.new_empty(*keep_indices.shape, features.shape[2]),
        features.new_empty(keep_indices.shape, dtype=torch.float32),
    )


@torch.library.custom_op("tokenprune::cluster_mean_bwd", mutates_args=())
def _cluster_mean_bwd(
    roots: Tensor, slots: Tensor, shares: Tensor, weights: Tensor | None, like: Tensor
) -> Tensor:
    from tokenprune.ops.cluster_mean import kernel

    return kernel.launch_mean_bwd(roots, slots, shares, weights, like.dtype)


@_cluster_mean_bwd.register_fake
def _(roots: Tensor, slots: Tensor, shares: Tensor, weights: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(*roots.shape, shares.shape[1])


def gradient_of_members(
    shares: Tensor,
    roots: Tensor,
    crops: Tensor,
    cells: Tensor,
    like: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Hands every member of a kept cluster its share -> [B, N, D] gradient of the features.

    Args:
        shares: [T, D] float32, what a member of each slot receives.
        roots: [B, N] int64.
        crops, cells: [T] int64, the crop and the root of each slot.
        like: the dtype of the gradient.
        weights: [B, N], how many shares each member receives; 1 by default.
    """
    slots = torch.full_like(roots, -1)
    slots[crops, cells] = torch.arange(len(cells), device=roots.device)
    return _cluster_mean_bwd(roots, slots, shares, weights, like)


class _Inputs(NamedTuple):
    """What `_cluster_mean` takes, by name; as gradients, None for what has none."""

    features: Any = None
    roots: Any = None
    keep_indices: Any = None
    weights: Any = None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    given, (means, totals) = _Inputs(*inputs), output
    ctx.mark_non_differentiable(totals)
    ctx.save_for_backward(given.roots, given.keep_indices, given.weights, means, totals)


def _backward(ctx: Any, grad_means: Tensor, _: None) -> _Inputs:
    roots, keep_indices, weights, means, totals = ctx.saved_tensors
    crops = torch.arange(len(roots), device=roots.device)[:, None].expand_as(keep_indices)
    shares = grad_means.float() / torch.where(totals > 0, totals, 1)[..., None]
    grad_features = gradient_of_members(
        shares.flatten(0, 1), roots, crops.flatten(), keep_indices.flatten(), means, weights
    )
    return _Inputs(features=grad_features)


_cluster_mean.register_autograd(_backward, setup_context=_setup)
