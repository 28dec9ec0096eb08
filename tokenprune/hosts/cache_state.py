"""What a KV cache of a shortened prompt must remember, and how the tokens after it fit on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ATTRIBUTE = "_tokenprune_state"
_ROWS = "_tokenprune_rows"


@dataclass(frozen=True)
class PromptRows:
    """By what a prompt's rows are known again in its cache.

    Attributes:
        number: of rows.
        numbers: [B, C], one number of each column's first key; None where no layer holds all.
    """

    number: int
    numbers: Tensor | None


def remember_rows(cache: Any, number: int) -> None:
    numbers = _numbers(cache)
    setattr(cache, _ROWS, PromptRows(number, None if numbers is None else numbers.clone()))


def rows_now(cache: Any, batch: int) -> Tensor | None:
    """[batch] int64: which of the prompt's rows each row of its cache is now; None for the same.

    Rows may have been repeated for beams, or chosen and put in another order by
    `batch_select_indices` and `reorder_cache`, which know nothing of what lies on a cache.

    Raises:
        NotImplementedError: a row that is none of the prompt's.
    """
    known: PromptRows = getattr(cache, _ROWS)
    if known.number == 1:  # also where a rejected draft was cropped off and written anew
        return None if batch == 1 else torch.zeros(batch, dtype=torch.int64)
    now = None if known.numbers is None else _numbers(cache)
    if known.numbers is None or now is None:
        if batch == known.number:
            return None
        if batch % known.number:
            raise NotImplementedError(
                f"the cache was filled with {known.number} rows, got {batch}, and holds too little "
                "of the prompt to tell which"
            )
        return torch.arange(batch) // (batch // known.number)
    length = min(now.shape[1], known.numbers.shape[1])
    then, now = known.numbers[:, :length], now[:, :length].to(known.numbers.device)
    if torch.equal(now, then):
        return None
    same = (now[:, None] == then[None]).all(-1)
    if not bool(same.any(1).all()):
        raise NotImplementedError("the cache holds rows that are none of the shortened prompt's")
    return same.int().argmax(1)


def _numbers(cache: Any) -> Tensor | None:
    for layer in cache.layers:
        keys = layer.keys
        # A sliding layer forgets, a quantized one rounds what it held.
        plain = type(layer).__name__ == "DynamicLayer"
        if plain and isinstance(keys, Tensor) and keys.ndim == 4:
            return keys[:, 0, :, 0].nan_to_num()
    return None


@dataclass(frozen=True)
class CacheState:
    """Lies on the cache itself: copies of a cache carry it along, and it dies with the cache.

    Attributes:
        mask: [B, C] bool, False where the cache holds padding.
        columns: [B, C] int64, the column of the whole sequence that each entry comes from.
        original_length: columns that the cache would hold had nothing been removed.
        next_position: [B] int64, the position of the token that follows.
        shift: [B] int64, how far positions have moved from what the host believes.
    """

    mask: Tensor
    columns: Tensor
    original_length: int
    next_position: Tensor
    shift: Tensor

    @staticmethod
    def of(cache: Any) -> CacheState | None:
        return getattr(cache, _ATTRIBUTE, None)

    def attach(self, cache: Any) -> None:
        setattr(cache, _ATTRIBUTE, self)
        remember_rows(cache, len(self.mask))

    @property
    def length(self) -> int:
        return self.mask.shape[1]

    def original_past(self, past: int) -> int:
        """Columns before this step as the host counts them; `past` as the cache does."""
        return past - self.length + self.original_length

    def for_rows(self, rows: Tensor | None) -> CacheState:
        """The state of a cache whose rows were repeated, chosen or put in another order."""
        if rows is None:
            return self
        return CacheState(
            self.mask[rows.to(self.mask.device)],
            self.columns[rows.to(self.columns.device)],
            self.original_length,
            self.next_position[rows.to(self.next_position.device)],
            self.shift[rows.to(self.shift.device)],
        )

    def cut(self, past: int) -> CacheState:
        """The state of a cache that was cropped into the prompt: a rejected draft is text."""
        removed = self.length - past
        if removed <= 0:
            return self
        return CacheState(
            self.mask[:, :past],
            self.columns[:, :past],
            self.original_length - removed,
            self.next_position - removed,
            self.shift,
        )

    def attention_mask(self, given: Tensor | None, past: int, step: int) -> Tensor:
        """[B, past + step] for the shortened cache, from a mask of the host's length, or None.

        Raises:
            ValueError: a length that fits neither the prompt as it was nor the cache as it is.
        """
        if given is None:
            tail = self.mask.new_ones(len(self.mask), past - self.length + step)
        elif given.shape[1] == self.original_past(past) + step:
            tail = given[:, self.original_length :]
        elif given.shape[1] == past + step:
            tail = given[:, self.length :]
        else:
            raise ValueError(
                f"attention_mask must have {self.original_past(past) + step} columns (the sequence "
                f"before tokens were removed) or {past + step} (what the cache holds), "
                f"got {given.shape[1]}"
            )
        return torch.cat([self.mask.to(tail), tail], dim=1)

    def all_columns(self, past: int, step: int) -> Tensor:
        """[B, past + step] columns of the whole sequence, those of this step included."""
        later = torch.arange(past - self.length + step, device=self.columns.device)
        later = (later + self.original_length).expand(len(self.columns), -1)
        return torch.cat([self.columns, later], dim=1)

    def positions(self, given: Tensor | None, past: int, step: int) -> Tensor:
        """[B, step], or [A, B, step] where the host gave several axes.

        Raises:
            ValueError: positions that the cache has already passed.
        """
        following = self.next_position[:, None] + past - self.length
        following = following + torch.arange(step, device=following.device)
        if given is None:
            return following
        moved = given - self.shift[:, None].to(given.device)
        text = moved[-1] if moved.ndim == 3 else moved
        if bool((text[:, 0] < following[:, 0].to(text.device)).any()):
            raise ValueError(
                "the tokens given lie before the end of the cache: a conversation cannot be "
                "continued with a cache whose visual tokens were removed by passing the whole "
                "prompt again. Pass the new tokens alone to forward, or start with a new cache"
            )
        return moved
