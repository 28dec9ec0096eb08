"""What a layer is called with in a prompt that loses columns on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import attention_implementation
from tokenprune.hosts.masks import fit_prompt_mask, moved, rotary_of, with_bias
from tokenprune.hosts.memory import Memory
from tokenprune.hosts.prompt import Prompt
from tokenprune.hosts.sequence import KeptColumns, compacted
from tokenprune.hosts.windows import window_of


class LayerArguments:
    """Fits arguments, which layers share, to the columns that are left.

    Args:
        prompt: as it came into the first layer.
        adapter: of the host.
        compact: positions close their gaps.

    Attributes:
        positions: [.., B or 1, L] of the whole prompt.
    """

    positions: Tensor

    def __init__(self, prompt: Prompt, adapter: Adapter, compact: bool) -> None:
        self.prompt, self.adapter, self.compact = prompt, adapter, compact
        self._fitted: dict[Any, tuple[Any, Any]] = {}

    def fit(
        self,
        number: int,
        layer: Any,
        states: Tensor,
        given: dict[str, Any],
        columns: KeptColumns | None,
    ) -> dict[str, Any]:
        """The arguments of layer `number` for what is left, and for what its cache holds."""
        memory = self._memory(number)
        if columns is None and memory is None:
            return given
        # Before the first cut states have all columns, padding included.
        left = columns or KeptColumns.of(torch.ones_like(self.prompt.now), pad_left=True)
        group = None if memory is None else memory.group
        rotary, mask = given["position_embeddings"], given.get("attention_mask")
        window, attention = window_of(number, layer), attention_implementation(layer.self_attn)

        def fit_rotary() -> Any:
            if not self._moves(memory, columns):
                return tuple(left.take_embeddings(part) for part in rotary)
            positions, _ = self._positions(memory, columns)
            language_model = self.adapter.language_model
            return rotary_of(language_model, number, layer, states, left.take(positions))

        def fit_mask() -> Tensor | None:
            fitted = fit_prompt_mask(mask, memory, self.prompt, left, window, attention)
            if left.bias is None:
                return fitted
            return with_bias(fitted, left.bias.to(states.device), states, attention)

        # Layers look at positions only to find packed sequences, which gaps would pass for.
        return given | {
            "position_embeddings": self._once(("rotary", group), (columns, rotary), fit_rotary),
            "attention_mask": self._once(("mask", group, window), (columns, mask), fit_mask),
            "position_ids": None,
        }

    def shift(self, number: int, columns: KeptColumns | None) -> Tensor | None:
        """[B] int64: how far the positions of what follows have moved in a layer."""
        memory = self._memory(number)
        if not self._moves(memory, columns):
            return None
        group = None if memory is None else memory.group
        shift: Tensor | None = self._once(
            ("shift", group), (columns,), lambda: self._positions(memory, columns)[1]
        )
        return shift

    def forget(self) -> None:
        self._fitted.clear()

    def _memory(self, number: int) -> Memory | None:
        return Memory.of(self.prompt.cache, number)

    def _once(self, kind: Any, values: tuple[Any, ...], fit: Callable[[], Any]) -> Any:
        key = kind, *map(id, values)
        if key not in self._fitted:
            self._fitted[key] = values, fit()  # they live as long as their numbers count
        return self._fitted[key][1]

    def _moves(self, memory: Memory | None, columns: KeptColumns | None) -> bool:
        moved_before = memory is not None and memory.shift is not None
        return moved_before or (self.compact and columns is not None)

    def _positions(
        self, memory: Memory | None, columns: KeptColumns | None
    ) -> tuple[Tensor, Tensor | None]:
        """[.., B, L] of all columns, and how far what follows has moved."""
        positions, now = self.positions, self.prompt.now
        positions = positions.expand(*positions.shape[:-2], len(now), -1)
        shift = None
        if memory is not None and memory.shift is not None:
            positions, shift = moved(positions, memory), memory.shift_of_rows()
        if self.compact and columns is not None:
            positions, more = compacted(positions, columns.keep, now)
            shift = more if shift is None else shift.to(more.device) + more
        return positions, shift
