"""Arithmetic that the references share: wide accumulation for narrow inputs, in bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

# Crops in work at a time: 16 x 576 x 1024 in float32 is 36 MiB, whatever the batch.
BLOCK_CROPS = 16


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for everything narrower, float64 for itself."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Scores decide what is kept: autocast must not round them to 8 bits of mantissa."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(value.device for value in args if isinstance(value, Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped


def wide_matmul(left: Tensor, right: Tensor) -> Tensor:
    """left @ right for [B, M, N] @ ([N, P] or [B, N, P]), computed and returned in the wide dtype.

    Narrow operands are widened a few crops at a time, so that no wide copy of a whole batch exists.
    """
    dtype = wide_dtype(torch.promote_types(left.dtype, right.dtype))
    if left.dtype == right.dtype == dtype or len(left) <= BLOCK_CROPS:
        return left.to(dtype) @ right.to(dtype)
    lefts = left.split(BLOCK_CROPS)
    rights = right.split(BLOCK_CROPS) if right.ndim == 3 else [right] * len(lefts)
    return torch.cat([a.to(dtype) @ b.to(dtype) for a, b in zip(lefts, rights, strict=True)])
