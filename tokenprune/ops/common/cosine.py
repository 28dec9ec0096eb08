"""Cosine similarity, as the references compute it: in blocks, and the same for equal directions."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.precision import wide_dtype

BLOCK_ROWS = 128
SMALLEST_NORM = 1e-12  # a token of zeros is similar to nothing, itself included


def rounding_of(dtype: torch.dtype) -> float:
    """What rounding may leave between two equal directions in a dtype; less than it is nothing."""
    return 64 * torch.finfo(dtype).eps


def cosine_distance(similarity: Tensor) -> Tensor:
    """1 - similarity; exactly zero between equal directions, so that ties stay ties."""
    distance = 1 - similarity
    return distance.masked_fill(distance < rounding_of(distance.dtype), 0)


def inverse_norms(features: Tensor) -> Tensor:
    """[B, N, D] -> [B, N] in the wide dtype."""
    wide = features.to(wide_dtype(features.dtype))
    return 1 / torch.linalg.vector_norm(wide, dim=-1).clamp(min=SMALLEST_NORM)


def cosine_matrix(features: Tensor, out: Tensor | None = None) -> Tensor:
    """[B, N, D] -> [B, N, N] in the wide dtype, for a few crops at a time.

    Each pair is multiplied once and mirrored. On a CPU crops go one by one: a crop and its matrix
    stay in the cache from the first product to the last.

    Args:
        features: [B, N, D].
        out: [B or more, N, N] of the wide dtype, to write to.
    """
    batch, num_tokens, _ = features.shape
    if out is None:
        dtype = wide_dtype(features.dtype)
        out = features.new_empty(batch, num_tokens, num_tokens, dtype=dtype)
    at_once = 1 if features.device.type == "cpu" else max(batch, 1)
    for crops, matrix in zip(features.split(at_once), out[:batch].split(at_once), strict=True):
        wide, scale = crops.to(matrix.dtype), inverse_norms(crops)
        for start in range(0, num_tokens, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, num_tokens)
            block = matrix[:, start:stop, start:]
            multiply(wide[:, start:stop], wide[:, start:].mT, block)
            block.mul_(scale[:, start:stop, None]).mul_(scale[:, None, start:])
            matrix[:, stop:, start:stop] = block[:, :, stop - start :].mT
    return out[:batch]


def multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """left @ right into `out`, [B, M, N] with rows of any stride; bmm would copy such a one."""
    if len(left) == 1:
        torch.mm(left[0], right[0], out=out[0])
    else:
        out.copy_(left @ right)


class WeightedRows:
    """Rows of w_i cos(f_i, f_j) w_j for a few crops, computed when they are asked for.

    A product of one row reads all features of its crop; of many rows, hardly more. So with a row
    come those that rank highest and are likely to be asked for next.

    Args:
        features: [B, N, D].
        weights: [B, N] of the wide dtype.
        scratch: [B or more, N, N] of the wide dtype, to write to.
        num_first: rows that are computed with a crop's first one.
    """

    NUM_NEXT = 16

    def __init__(self, features: Tensor, weights: Tensor, scratch: Tensor, num_first: int) -> None:
        batch, num_tokens, _ = features.shape
        device = features.device
        self.features = features
        self.weights = weights
        self.num_first = num_first
        self.rows = scratch
        self.slots = torch.full((batch, num_tokens), -1, device=device)
        self.scales: list[Tensor] = [weights] * batch  # until a crop's norms are known
        self.counts = [0] * batch
        self.starts = torch.arange(batch, device=device)[:, None] * num_tokens

    def at(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """[B, 1] one token of each crop -> [B, N], its row.

        Args:
            tokens: [B, 1] int64.
            ranks: [B, N], how likely each token is to be asked for.
        """
        slots = self.slots.gather(1, tokens)
        if int(slots.amin()) < 0:
            for crop in (slots < 0).nonzero()[:, 0].tolist():
                self._compute(crop, int(tokens[crop]), ranks[crop])
            slots = self.slots.gather(1, tokens)
        return self.rows.flatten(0, 1).index_select(0, (slots + self.starts)[:, 0])

    def _compute(self, crop: int, token: int, ranks: Tensor) -> None:
        slots, first = self.slots[crop], self.counts[crop]
        if not first:  # not for all crops at once: this one is in the cache now
            self.scales[crop] = inverse_norms(self.features[crop]) * self.weights[crop]
        if not first and 4 * self.num_first >= 3 * len(slots):
            self._compute_all(crop)
            return
        number = min(self.NUM_NEXT if first else self.num_first, len(slots) - first)
        ranks = ranks.masked_fill(slots >= 0, -torch.inf)
        ranks[token] = torch.inf
        chosen = ranks.topk(number).indices
        last = self.counts[crop] = first + number
        slots[chosen] = torch.arange(first, last, device=slots.device)
        rows, scale = self.rows[crop, first:last], self.scales[crop]
        wide = self.features[crop].to(rows.dtype)
        torch.mm(wide[chosen], wide.T, out=rows)
        rows.mul_(scale[chosen, None]).mul_(scale)

    def _compute_all(self, crop: int) -> None:
        """All rows of a crop, which cost less than most of them: each pair is multiplied once."""
        weights = self.weights[crop]
        rows = cosine_matrix(self.features[crop : crop + 1], self.rows[crop : crop + 1])[0]
        rows.mul_(weights[:, None]).mul_(weights)
        self.slots[crop] = torch.arange(len(rows), device=rows.device)
        self.counts[crop] = len(rows)
