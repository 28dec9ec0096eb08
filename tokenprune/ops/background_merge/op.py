"""ops.background_merge: tokens that lean on each other become one cluster."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.background_merge import reference
from tokenprune.ops.common.checks import check_grid, check_int, check_tensor
from tokenprune.ops.common.launch import MAX_GRID_TOKENS, resolve_impl, tokens_obstacle

CYCLES = ("official", "merge")


def check_merge_options(max_iters: int, cycles: str) -> None:
    check_int("max_iters", max_iters, low=0)
    if cycles not in CYCLES:
        raise ValueError(f"cycles must be 'official' or 'merge', got {cycles!r}")


def background_merge(
    logits: Tensor,
    grid_size: tuple[int, int],
    *,
    max_iters: int = 12,
    cycles: str = "official",
    impl: str = "auto",
) -> Tensor:
    r"""Roots of the clusters that strongest-neighbor pointers form.

    Background Token Pruning of GeoLLaVA-8K (arXiv 2505.21375, section 3.2). Each token points to
    the neighbor with the largest softmax weight; neighbors beyond the border are clamped to it, and
    weights of offsets that name the same cell add up. Ties go to the lowest cell index.

    Args:
        logits: [B, N, 9] floating point, from `background_score`.
        grid_size: (rows, cols) with rows * cols == N.
        max_iters: doublings of the pointers in official mode, at least 0.
        cycles: "official" reproduces the published pointer jumping to the bit: two tokens that
            point at each other stay two roots, and longer cycles end where `max_iters` doublings
            leave them. "merge" follows every pointer to its end, whatever `max_iters`, and joins
            each cycle into one cluster whose root is its lowest index.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            takes N up to 4,096, and no float64.

    Returns:
        [B, N] int64, each token's root. Not differentiable.

    Raises:
        ValueError: shapes, `max_iters`, `cycles`, or an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.

    Formula:
        With $w_i = \operatorname{softmax}_o(\ell_{i,o})$ and $n(i, o)$ the cell at offset $o$,
        clamped to the grid, $p(i) = \arg\max_j \sum_{o:\, n(i,o) = j} w_{i,o}$.

        "official": $r_0 = p$, $r_{t+1}(i) = r_t(r_t(i))$, and $r_T$ is returned with $T$ =
        `max_iters`. "merge": every path of pointers ends in one cycle (a root is a cycle of one),
        and the cycle's lowest index is the root.

    Cost:
        $9 N$ weights and $T N$ steps; $N \log_2 N$ steps under "merge".

    Backward:
        -

    Example:
        ```python
        import torch

        from tokenprune import ops

        logits = torch.zeros(1, 12, 9)
        logits[:, :, 5] = 9.0  # each token leans on its right neighbor
        roots = ops.background_merge(logits, (3, 4))
        assert roots.tolist() == [[3] * 4 + [7] * 4 + [11] * 4]
        ```
    """
    check_tensor("logits", logits)
    if logits.ndim != 3 or logits.shape[2] != 9:
        raise ValueError(f"logits must be [B, N, 9], got shape {list(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    check_grid(grid_size, logits.shape[1])
    check_merge_options(max_iters, cycles)
    obstacle = tokens_obstacle("background_merge", logits, MAX_GRID_TOKENS)
    if resolve_impl(impl, obstacle, on_gpu=logits.is_cuda) == "triton":
        return _background_merge(logits.detach(), *grid_size, max_iters, cycles)
    return reference.background_merge(logits, grid_size, max_iters, cycles)


@torch.library.custom_op("tokenprune::background_merge", mutates_args=())
def _background_merge(logits: Tensor, rows: int, cols: int, max_iters: int, cycles: str) -> Tensor:
    from tokenprune.ops.background_merge import kernel

    return kernel.launch_merge(logits, (rows, cols), max_iters, cycles)


@_background_merge.register_fake
def _(logits: Tensor, rows: int, cols: int, max_iters: int, cycles: str) -> Tensor:
    return logits.new_empty(logits.shape[:2], dtype=torch.int64)
