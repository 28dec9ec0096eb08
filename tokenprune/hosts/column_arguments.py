"""What else a language model is called with that has the prompt's columns, or its visual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tokenprune.hosts.compat import CACHE_NAMES
from tokenprune.hosts.sequence import KeptColumns

# What `BeforeModel` and `BetweenLayers` fit to the columns that remain.
FITTED = {
    *("inputs_embeds", "attention_mask", "position_ids", *CACHE_NAMES),
    *("visual_pos_masks", "deepstack_visual_embeds"),
}
# [B or 1, L, ...]: what layers add to a column, and which experts it goes to.
BY_COLUMN = {"per_layer_inputs", "moe_mm_token_type_ids"}
# For the head's loss, which takes labels at the columns that remain; language models pass it on.
OF_THE_LOSS = {"shift_labels", "num_items_in_batch"}


def refuse_unknown(given: Mapping[str, Any], name: str, known: set[str]) -> None:
    """Raises where a language model gets tensors that nothing here would shorten.

    Args:
        given: its arguments.
        name: of the function, for the message.
        known: besides `FITTED`.

    Raises:
        NotImplementedError: the message names the arguments.
    """
    passed = FITTED | OF_THE_LOSS | known
    unknown = [
        key
        for key, value in given.items()
        if key not in passed and any(tensor.ndim > 0 for tensor in tensors_in(value))
    ]
    if unknown:
        raise NotImplementedError(
            f"{name} is called with {', '.join(sorted(unknown))}, which may have the prompt's "
            "columns or visual tokens and would not lose those that leave"
        )


def taken(given: Mapping[str, Any], columns: KeptColumns) -> dict[str, Tensor]:
    """The arguments `BY_COLUMN`, of the columns that remain: [B or 1, L, ...] -> [B, L', ...]."""
    found = {}
    for name in BY_COLUMN:
        value = given.get(name)
        if value is not None:
            index = columns.index.to(value.device)
            rows = torch.arange(len(index), device=value.device)[:, None]
            found[name] = value.expand(len(index), *value.shape[1:])[rows, index]
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)
