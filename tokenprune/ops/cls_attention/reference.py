"""One row of the softmax."""

from __future__ import annotations

from torch import Tensor

from tokenprune.ops.common.precision import wide_dtype, without_autocast


@without_autocast
def cls_attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    dtype = wide_dtype(q.dtype)
    query = q[:, :, :1].to(dtype) * scale
    return (query @ k.to(dtype).mT).squeeze(2).softmax(-1)
