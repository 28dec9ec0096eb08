"""Several processes that share the rows, as `accelerate launch` or torchrun starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processes:
    """This process among them.

    Attributes:
        rank, count: of this process, from 0; of all.
    """

    rank: int = 0
    count: int = 1
    _state: Any = None

    @classmethod
    def started(cls, device: str) -> Processes:
        """Those that a launcher started, or this one alone."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu")
        return cls(state.process_index, state.num_processes, state)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self._state is not None:
            self._state.wait_for_everyone()
