"""What a method reads of a layer of the language model: the columns of a prompt with an image."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerTokens:
    """The columns of prompts, as a layer of the language model has them.

    All tensors are None unless a method says that it reads them.

    Attributes:
        length: L, columns of each prompt.
        start: the column of the first visual token.
        num_tokens: N, visual tokens, side by side wherever more than attention is given.
        hidden_states: [B, L, D], what goes into the layer, or comes out, as the method says.
        keys: [B, H, L, d], with rotary embedding.
        plain_keys, plain_queries: [B, H, L, d], as they leave the projection.
        attention: [B, H, T, N] after softmax over all columns, what visual tokens receive from the
            T columns that rank them.
        raters: [B, T] int64, those columns.
        position_embeddings: cosine and sine, [B, L, d] each, of the rotary embedding.
    """

    length: int
    start: int
    num_tokens: int
    hidden_states: Tensor | None = None
    keys: Tensor | None = None
    plain_keys: Tensor | None = None
    plain_queries: Tensor | None = None
    attention: Tensor | None = None
    raters: Tensor | None = None
    position_embeddings: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        from tokenprune.ops.common.checks import check_int

        check_int("start", self.start, low=0)
        check_int("num_tokens", self.num_tokens, low=1)
        check_int("length", self.length, low=self.start + self.num_tokens)
        sizes = {"hidden_states": (3, self.length), "attention": (4, self.num_tokens)}
        sizes |= dict.fromkeys(("keys", "plain_keys", "plain_queries"), (4, self.length))
        for name, (dims, columns) in sizes.items():
            value = getattr(self, name)
            if value is None:
                continue
            axis = dims - 1 if name == "attention" else dims - 2
            if value.ndim != dims or value.shape[axis] != columns:
                raise ValueError(
                    f"{name} must have {dims} dimensions, and {columns} columns in dimension "
                    f"{axis}, got shape {list(value.shape)}"
                )

    def needed(self, *names: str) -> tuple[Any, ...]:
        """The tensors of those names.

        Raises:
            ValueError: one is None.
        """
        values = tuple(getattr(self, name) for name in names)
        if missing := [name for name, value in zip(names, values, strict=True) if value is None]:
            raise ValueError(f"LayerTokens.{missing[0]} is needed, got None")
        return values

    def tensors(self) -> dict[str, Tensor]:
        """Those that are given, by their fields' names; the rotary embedding aside."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def visual(self) -> slice:
        """The columns of visual tokens."""
        return slice(self.start, self.start + self.num_tokens)

    def columns_after(self, kept: Tensor) -> Tensor:
        """[B, K] kept visual tokens -> [B, L - N + K], the columns that go on, ascending."""
        columns = torch.arange(self.length, device=kept.device).repeat(len(kept), 1)
        visual = self.visual
        parts = (columns[:, : visual.start], kept + self.start, columns[:, visual.stop :])
        return torch.cat(parts, 1)
