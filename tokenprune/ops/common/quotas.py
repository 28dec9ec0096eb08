"""How many slots each crop gets: as many as every other, or a quota of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenprune.ops.common.checks import check_num_keep, check_quotas
from tokenprune.tokens import crops_of, cu_seqlens_of


class Quotas(NamedTuple):
    """The slots of every crop. Unpacked, these are the three arguments that a `custom_op` takes.

    Attributes:
        largest: slots of the crop that has most; of every crop where none has a quota of its own.
        cu_seqlens: None where every crop has `largest`. Else [B + 1] int32, where each crop's slots
            start, and slots lie packed.
        total: slots of all crops.
    """

    largest: int
    cu_seqlens: Tensor | None
    total: int

    @staticmethod
    def of(num_keep: int | Tensor, features: Tensor) -> Quotas:
        """One number for all crops, or [B] integers; checked, and moved to the features.

        Reading the values of a tensor costs a synchronization where it lies on a GPU.
        """
        batch, num_tokens, _ = features.shape
        if not isinstance(num_keep, Tensor):
            check_num_keep(num_keep, num_tokens)
            return Quotas(num_keep, None, batch * num_keep)
        values = check_quotas(num_keep, features)
        cu_seqlens = cu_seqlens_of(num_keep.to(features.device))
        return Quotas(max(values, default=0), cu_seqlens, sum(values))

    def shape(self, batch: int) -> tuple[int, ...]:
        """(B, K), or (T,) where slots are packed."""
        return (batch, self.largest) if self.cu_seqlens is None else (self.total,)

    def has_slot(self, rank: Tensor) -> Tensor:
        """[B, M] ranks from 0 -> [B, M] bool: whether the crop has a slot for that rank."""
        if self.cu_seqlens is None:
            return rank < self.largest
        return rank < self.cu_seqlens.diff()[:, None]

    def crops(self, batch: int, device: torch.device) -> Tensor:
        """[B * K] or [T] int64: the crop of each slot."""
        if self.cu_seqlens is None:
            return torch.arange(batch, device=device).repeat_interleave(self.largest)
        return crops_of(self.cu_seqlens, self.total)
