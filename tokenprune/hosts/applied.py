"""What is in force in a host, and what it did last in each thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokenprune.budget import Budget
from tokenprune.hosts.reduced import ReducedImages
from tokenprune.hosts.sequence import KeptColumns
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.method import Method


@dataclass
class Outcome:
    """What a prompt with images came to.

    Attributes:
        images: what each image kept.
        columns: of the prompt, those that remain; None for all.
        kept_positions: for each row the int64 positions of the whole sequence that remain.
        by_layer: [B, L] bool for each layer, where tokens leave between them; None for all columns.
        stopwatches: of the work that reducing took.
        reading: those of them that ran while the images were encoded.
        cache_bytes_saved: over all layers and rows.
    """

    images: ReducedImages
    columns: KeptColumns | None
    kept_positions: list[Tensor]
    by_layer: Sequence[Tensor | None]
    stopwatches: list[Stopwatch]
    reading: Sequence[Stopwatch] = ()
    cache_bytes_saved: int = 0


class LastRun(threading.local):
    """The calling thread's.

    Attributes:
        outcome: of the last prompt with images.
        kept_positions, columns: of the last prompt, with or without images.
    """

    outcome: Outcome | None = None
    kept_positions: Sequence[Tensor] = ()
    columns: KeptColumns | None = None


@dataclass
class Applied:
    """A method and its budget in force; `apply` explains them."""

    method: Method
    budget: Budget
    positions: str
    strict: bool
    last: LastRun = field(default_factory=LastRun)

    def note(self, outcome: Outcome) -> None:
        outcome.images = outcome.images.detached()
        self.last.outcome, self.last.columns = outcome, outcome.columns
        self.last.kept_positions = outcome.kept_positions


def cache_bytes_saved(cache: Any, removed: Sequence[int]) -> int:
    """`removed`: for each layer, the columns that it would hold beside those it holds."""
    saved = 0
    for layer, columns in zip(cache.layers, removed, strict=False):
        keys = getattr(layer, "keys", None)
        if keys is None or keys.ndim != 4:  # not used, recurrent, or quantized elsewhere
            continue
        rows, _, held, _ = keys.shape
        per_column = sum(
            states.shape[1] * states.shape[3] * states.element_size()
            for states in (keys, layer.values)
        )
        window = getattr(layer, "sliding_window", None)
        without = held + columns if window is None else min(held + columns, window - 1)
        saved += rows * per_column * max(0, without - held)
    return saved
