"""What the two attention operators ask of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.checks import FEATURE_DTYPES, check_device, check_tensor
from tokenprune.ops.common.launch import resolve_impl, triton_obstacle

MAX_HEAD_DIM = 256


def check_queries_and_keys(q: Tensor, k: Tensor, scale: float | None) -> float:
    """Both [B, H, N, d] of one dtype and device; the scale, 1 / sqrt(d) where none is given."""
    for name, value in (("q", q), ("k", k)):
        check_tensor(name, value)
        if value.ndim != 4 or 0 in value.shape[2:]:
            raise ValueError(f"{name} must be [B, H, N, d], got shape {list(value.shape)}")
        if value.dtype not in FEATURE_DTYPES:
            raise TypeError(f"{name} must be floating point, got {value.dtype}")
    if q.shape != k.shape:
        raise ValueError(
            f"q and k must have the same shape, got {list(q.shape)} and {list(k.shape)}"
        )
    if q.dtype != k.dtype:
        raise TypeError(f"q and k must have the same dtype, got {q.dtype} and {k.dtype}")
    check_device("k", k, q)
    return q.shape[3] ** -0.5 if scale is None else float(scale)


def attention_impl(operator: str, impl: str, q: Tensor, k: Tensor) -> str:
    """Triton runs forward only: where a gradient is wanted "auto" takes the reference."""
    obstacle = triton_obstacle(operator, q)
    if obstacle is None and q.shape[3] > MAX_HEAD_DIM:
        obstacle = ValueError(
            f"impl='triton' of ops.{operator} expects d of at most {MAX_HEAD_DIM}, got {q.shape[3]}"
        )
    if obstacle is None and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        obstacle = NotImplementedError(
            f"impl='triton' of ops.{operator} has no backward; use impl='reference' or no_grad"
        )
    return resolve_impl(impl, obstacle, on_gpu=q.is_cuda)
