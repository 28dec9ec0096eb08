"""Which columns of a batch remain, and the same choice for all that has columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class KeptColumns:
    """The shortened batch: row b of the result is row b's kept columns, padded to one length.

    Attributes:
        keep: [B, L] bool.
        index: [B, L'] int64, the column that each place comes from; any column where padding.
        real: [B, L'] bool, False where padding.
        padded: whether there is any.
        bias: [B, L'] float32, what attention adds to each column's logits; None for nothing.
    """

    keep: Tensor
    index: Tensor
    real: Tensor
    padded: bool
    bias: Tensor | None = None

    @staticmethod
    def of(keep: Tensor, *, pad_left: bool, bias: Tensor | None = None) -> KeptColumns:
        """Keeps the columns where `keep` [B, L] is True, in their order; `bias` is [B, L]."""
        counts = keep.sum(1)
        shortest, longest = (int(count) for count in counts.aminmax())
        # A stable sort of booleans moves the kept columns to one side and leaves their order.
        order = (keep if pad_left else ~keep).int().argsort(dim=1, stable=True)
        index = order[:, keep.shape[1] - longest :] if pad_left else order[:, :longest]
        taken = None if bias is None else bias.gather(1, index)
        return KeptColumns(keep, index, keep.gather(1, index), shortest != longest, taken)

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

    def take_mask(
        self, mask: Tensor | None, earlier: Tensor, earlier_real: Tensor, offset: int
    ) -> Tensor | None:
        """A prompt's mask -> that of the columns that remain, and of what is cached before them.

        Args:
            mask: [B or 1, H, L, M] bool or additive, in columns of the whole sequence. None stands
                for plain causal attention, and still does where no padding comes in.
            earlier: [B, P] int64, the columns that the cache holds.
            earlier_real: [B, P] bool, False where it only fills a row up.
            offset: the column that the mask begins with.

        Returns:
            [B, H, L', P + L'].
        """
        past = earlier.shape[1]
        real = torch.cat([earlier_real.to(self.real.device), self.real], dim=1)
        own = torch.eye(self.real.shape[1], dtype=torch.bool, device=self.real.device)
        own = nn.functional.pad(own & ~self.real[:, None], (past, 0))[:, None]
        if mask is None:
            if not self.padded and bool(earlier_real.all()):
                return None
            length = self.index.shape[1]
            causal = torch.ones(length, past + length, dtype=torch.bool, device=real.device)
            return causal.tril(past) & real[:, None, None] | own
        index = self.index.to(mask.device)
        mask = mask.expand(len(index), -1, -1, -1)
        heads = mask.shape[1]
        mask = mask.gather(2, index[:, None, :, None].expand(-1, heads, -1, mask.shape[3]))
        length = offset + mask.shape[3] - self.keep.shape[1]
        columns = torch.cat([earlier.to(index.device), length + index], dim=1)
        mask = take_columns(mask, columns, real, offset)
        if not self.padded:
            return mask
        # Padding sees itself: no row may be empty.
        own = own.to(mask.device)
        if mask.dtype != torch.bool:
            return mask.masked_fill(own, 0)
        return mask & self.real.to(mask.device)[:, None, :, None] | own


def take_columns(mask: Tensor, columns: Tensor, real: Tensor, offset: int = 0) -> Tensor:
    """[B or 1, H, Q, M] bool or additive -> [B, H, Q, K].

    Args:
        columns: [B, K] int64; those before `offset`, which the mask begins with, are closed.
        real: [B, K] bool; all else is closed, too.
    """
    places = columns.to(mask.device) - offset
    seen = (real.to(mask.device) & (places >= 0))[:, None, None]
    batch, heads, queries = len(places), mask.shape[1], mask.shape[2]
    index = places.clamp(min=0)[:, None, None].expand(-1, heads, queries, -1)
    taken = mask.expand(batch, -1, -1, -1).gather(3, index)
    if mask.dtype == torch.bool:
        return taken & seen
    return taken.masked_fill(~seen, torch.finfo(mask.dtype).min)


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


def compacted(positions: Tensor, keep: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """Positions without the gaps that dropped tokens leave, and how far what follows has moved.

    Args:
        positions: [B, L], or [A, B, L] of several axes.
        keep: [B, L] bool, the tokens that remain.
        now: [B, L] bool, False where padding.

    Returns:
        The same shape, meaningful where `keep`; and [B] int64.
    """
    axes = positions if positions.ndim == 3 else positions[None]
    now, keep = now.to(axes.device), keep.to(axes.device)
    # Qwen-VL's four rows are the text's numbering and the three axes of mRoPE.
    split = len(axes) - 3 if len(axes) == 4 else 0
    rope = axes[split:]
    following = rope.masked_fill(~now, -1).amax(dim=(0, 2)) + 1
    rope = compact(rope, keep, now)
    axes = torch.cat([compact(axes[:split], keep, now), rope]) if split else rope
    next_position = rope.masked_fill(~(keep & now), -1).amax(dim=(0, 2)) + 1
    return (axes if positions.ndim == 3 else axes[0]), following - next_position
