"""Reduction: where tokens leave, on the way of one prompt through the language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.applied import Applied, Outcome
from tokenprune.hosts.prompt import Prompt


class Reduction(ABC):
    """One prompt on its way. A kind of reduction is one file with one subclass.

    Attributes:
        in_layers: it needs to be told of every layer.
    """

    in_layers: ClassVar[bool] = False

    def __init__(self, applied: Applied, adapter: Adapter, prompt: Prompt) -> None:
        self.applied, self.adapter, self.prompt = applied, adapter, prompt

    @abstractmethod
    def begin(self, given: dict[str, Any]) -> dict[str, Any]:
        """The language model is called with `given`; what it shall be called with."""

    def enter_layer(
        self, number: int, layer: nn.Module, states: Tensor, given: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """What layer `number` shall run on instead of `states` [B, L, D] and its arguments."""
        return states, given

    def enter_layer_again(
        self, number: int, layer: nn.Module, states: Tensor, given: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """The same as before: a checkpointed layer runs again in the backward."""
        return states, given

    def forget(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Lets go of what only the forward under way needs."""

    @abstractmethod
    def end(self, cache: Any) -> Outcome | None:
        """After the last layer: leaves a memory on the cache. None where it was not reached.

        Args:
            cache: what the prompt has filled, or None.
        """
