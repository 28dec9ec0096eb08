"""The best match of each query, a block of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.cosine import inverse_norms, rounding_of
from tokenprune.ops.common.precision import BLOCK_CROPS, wide_dtype, without_autocast

BLOCK_ROWS = 256


@without_autocast
@torch.no_grad()
def most_similar(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    dtype = wide_dtype(keys.dtype)
    similarity = keys.new_empty(queries.shape[:2], dtype=dtype)
    index = keys.new_empty(queries.shape[:2], dtype=torch.int64)
    for start in range(0, len(keys), BLOCK_CROPS):
        crops = slice(start, start + BLOCK_CROPS)
        columns = (keys[crops].to(dtype) * inverse_norms(keys[crops])[:, :, None]).mT
        for first in range(0, queries.shape[1], BLOCK_ROWS):
            block = crops, slice(first, first + BLOCK_ROWS)
            rows = queries[block].to(dtype) * inverse_norms(queries[block])[:, :, None]
            found = rows @ columns
            # Equal directions are equally similar, so that ties stay ties.
            found.masked_fill_(found > 1 - rounding_of(dtype), 1)
            similarity[block], index[block] = found.max(2)
    return similarity, index
