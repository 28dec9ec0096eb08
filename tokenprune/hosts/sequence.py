"""Which columns of a batch remain, and the same choice for all that has columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeptColumns:
    """The shortened batch: row b of the result is row b's kept columns, padded to one length.

    Attributes:
        keep: [B, L] bool.
        index: [B, L'] int64, the column that each place comes from; any column where padding.
        real: [B, L'] bool, False where padding.
        padded: whether there is any.
    """

    keep: Tensor
    index: Tensor
    real: Tensor
    padded: bool

    @staticmethod
    def of(keep: Tensor, *, pad_left: bool) -> KeptColumns:
        """Keeps the columns where `keep` [B, L] is True, in their order."""
        counts = keep.sum(1)
        shortest, longest = (int(count) for count in counts.aminmax())
        # A stable sort of booleans moves the kept columns to one side and leaves their order.
        order = (keep if pad_left else ~keep).int().argsort(dim=1, stable=True)
        index = order[:, keep.shape[1] - longest :] if pad_left else order[:, :longest]
        return KeptColumns(keep, index, keep.gather(1, index), shortest != longest)

    def rows(self) -> list[Tensor]:
        """For each row the kept columns, ascending."""
        return [row.nonzero()[:, 0] for row in self.keep]

    def take(self, values: Tensor, fill: int | bool = 0) -> Tensor:
        """[..., B or 1, L] -> [..., B, L'], `fill` where padding."""
        index, real = self.index.to(values.device), self.real.to(values.device)
        shape = (*values.shape[:-2], len(index), values.shape[-1])
        taken = values.expand(shape).gather(-1, index.expand(*shape[:-1], -1))
        return taken.masked_fill(~real, fill) if self.padded else taken

    def take_embeddings(self, embeddings: Tensor) -> Tensor:
        """[..., B or 1, L, D] -> [..., B, L', D]."""
        rows = torch.arange(len(self.index), device=embeddings.device)[:, None]
        *outer, _, length, width = embeddings.shape
        expanded = embeddings.expand(*outer, len(self.index), length, width)
        return expanded[..., rows, self.index.to(embeddings.device), :]

    @property
    def places(self) -> Tensor:
        """[B, L] int64: where in the shortened row each kept column has come to lie."""
        places = torch.zeros_like(self.keep, dtype=torch.int64)
        slots = torch.arange(self.index.shape[1], device=self.index.device)
        return places.scatter_(1, self.index, slots.expand_as(self.index))

    def take_mask(self, mask: Tensor | None, past: int) -> Tensor | None:
        """[B or 1, H, L, past + L] attention mask, bool or additive -> [B, H, L', past + L'].

        None stands for plain causal attention, and still does where no padding comes in.
        """
        if mask is None:
            return self._causal_mask(past) if self.padded else None
        index, real = self.index.to(mask.device), self.real.to(mask.device)
        length = index.shape[1]
        mask = mask.expand(len(index), -1, -1, -1)
        heads = mask.shape[1]
        mask = mask.gather(2, index[:, None, :, None].expand(-1, heads, -1, mask.shape[3]))
        earlier = torch.arange(past, device=mask.device).expand(len(index), -1)
        columns = torch.cat([earlier, past + index], dim=1)
        mask = mask.gather(3, columns[:, None, None].expand(-1, heads, length, -1))
        if not self.padded:
            return mask
        seen = self._seen(real, past)
        if mask.dtype == torch.bool:
            return (mask & real[:, None, None].mT | self._own(real, past)) & seen
        lowest = torch.finfo(mask.dtype).min
        return mask.masked_fill(~seen, lowest).masked_fill(self._own(real, past), 0)

    def _causal_mask(self, past: int) -> Tensor:
        length = self.index.shape[1]
        causal = torch.ones(length, past + length, dtype=torch.bool, device=self.real.device)
        return causal.tril(past) & self._seen(self.real, past)

    def _seen(self, real: Tensor, past: int) -> Tensor:
        """[B, 1, L', past + L'] bool: no padding is seen, but by itself: no row may be empty."""
        columns = torch.nn.functional.pad(real, (past, 0), value=True)
        return columns[:, None, None] | self._own(real, past)

    def _own(self, real: Tensor, past: int) -> Tensor:
        own = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        return torch.nn.functional.pad(own & ~real[:, None], (past, 0))[:, None]


def edge_padding(attention_mask: Tensor) -> tuple[Tensor, bool]:
    """([B, L] bool where a row is padded at its ends, whether the batch is padded left).

    Without padding at all the answer is left: there the last column of each row stays its last
    token, which is what generation continues from.
    """
    mask = attention_mask.bool()
    leading = mask.cumsum(1) == 0
    trailing = mask.flip(1).cumsum(1).flip(1) == 0
    empty = leading.all(1, keepdim=True)
    right = bool((trailing & ~empty).any()) and not bool((leading & ~empty).any())
    return leading | trailing, not right


def compact(positions: Tensor, keep: Tensor, real: Tensor) -> Tensor:
    """Closes the gaps that dropped tokens leave.

    Args:
        positions: [A, B, L] int64; of the axes A of a token all share one numbering.
        keep: [B, L] bool, the tokens that remain.
        real: [B, L] bool, False where padding; a row's numbers begin where they began.

    Returns:
        [A, B, L], meaningful where `keep`: the positions that no kept token uses are taken out,
        their order stays.
    """
    result = positions.clone()
    for row in range(len(keep)):
        kept = keep[row] & real[row]
        if kept.any():
            _, rank = positions[:, row, kept].unique(return_inverse=True)
            result[:, row, kept] = rank + positions[:, row, real[row]].min()
    return result
