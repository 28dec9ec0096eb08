"""Masks and positions of a step, in columns of the whole sequence -> of what a cache holds.

Where all layers hold the same, and a handle is in force, the language model is given masks that
fit. Else each layer's arguments are fitted as it is entered, by hooks that last for one forward.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenprune.hosts.compat import (
    Call,
    attention_implementation,
    attention_in,
    prepared_masks,
)
from tokenprune.hosts.memory import Memory, fitting
from tokenprune.hosts.prompt import Prompt
from tokenprune.hosts.recurrent import KINDS
from tokenprune.hosts.sequence import KeptColumns, take_columns
from tokenprune.hosts.windows import (
    check_flash_window,
    kind_of,
    refused_attention,
    window_of_kind,
)


def held_before(
    memory: Memory | None, past: int, batch: int, window: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """([B, P], [B, P]): columns and real of what a layer holds before a step of `past` columns.

    Raises:
        NotImplementedError: a window from which a right-padded prompt's tokens have left.
    """
    columns = real = None
    if memory is not None:
        columns, real = memory.entries(past, device)
    if columns is None or real is None:
        columns = torch.arange(past, device=device).expand(batch, -1)
        real = torch.ones_like(columns, dtype=torch.bool)
    if len(columns) != batch:
        raise NotImplementedError(
            f"the cache was filled with {len(columns)} rows, got {batch}; change its rows by "
            "batch_select_indices, batch_repeat_interleave or reorder_cache"
        )
    if window is not None and columns.shape[1] > window - 1:
        if not bool(real[:, -1].all()):
            raise NotImplementedError(
                "a prompt padded on the right that is longer than the sliding window cannot be "
                "continued, its last tokens have left the cache; pad on the left"
            )
        columns, real = columns[:, 1 - window :], real[:, 1 - window :]
    return columns, real


def fit_mask(
    mask: Any,
    memory: Memory,
    past: int,
    states: Tensor,
    window: int | None,
    attention: str,
) -> Tensor | None:
    """A step's mask for what a layer holds, and what attention adds there.

    Args:
        mask: in columns of the whole sequence: [B, M], [B or 1, H, L, M], or None for causal.
        past: columns of the whole sequence before the step.
        states: [B, L, D], the step's.
        window: the layer's.
        attention: the name of its implementation.
    """
    fitted = fit_seen(mask, memory, past, states, window, attention)
    if memory.bias is None:
        return fitted
    held, _ = held_before(memory, past, len(states), window, states.device)
    bias = memory.biases(held.shape[1] + states.shape[1], states.device)
    assert bias is not None  # the memory has one
    return with_bias(fitted, bias, states, attention)


def with_bias(mask: Tensor | None, bias: Tensor, states: Tensor, attention: str) -> Tensor:
    """[B, 1, Q, K] in the dtype of the states, additive: what is seen, and `bias` [B, K] on it.

    Raises:
        NotImplementedError: an implementation of attention that takes no such mask.
    """
    if attention not in ("eager", "sdpa"):
        raise NotImplementedError(
            f"attention by {attention} takes no sizes of merged tokens; use attn_implementation "
            "sdpa or eager"
        )
    length, held = states.shape[1], bias.shape[1]
    if mask is None:
        mask = torch.ones(length, held, dtype=torch.bool, device=states.device)
        mask = mask.tril(held - length)[None, None]
    if mask.dtype == torch.bool:
        least = torch.finfo(states.dtype).min
        mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, least)
    return mask + bias[:, None, None].to(mask)


def fit_seen(
    mask: Any,
    memory: Memory,
    past: int,
    states: Tensor,
    window: int | None,
    attention: str,
) -> Tensor | None:
    """A step's mask for what a layer holds. Args: as of `fit_mask`."""
    batch, length, _ = states.shape
    total = past + length
    if "flash" in attention:
        check_flash_window(window, total)
    if mask is None and not memory.padded:
        return None
    columns, real = held_before(memory, past, batch, window, states.device)
    now = torch.arange(past, total, device=states.device).expand(batch, -1)
    columns = torch.cat([columns, now], dim=1)
    real = torch.cat([real, torch.ones_like(now, dtype=torch.bool)], dim=1)
    if mask is None:
        if "flash" in attention:
            return real
        seen = (columns[:, None] <= now[:, :, None]) & real[:, None]
        if attention != "sdpa":
            raise refused_attention(attention)
        return seen[:, None]
    if isinstance(mask, Tensor) and mask.ndim == 2:
        places = (columns - (total - mask.shape[1])).to(mask.device)
        taken = mask.expand(batch, -1).gather(1, places.clamp(min=0))
        return taken * (real.to(mask.device) & (places >= 0))
    if isinstance(mask, Tensor) and mask.ndim == 4:
        return take_columns(mask, columns, real, offset_of(mask, total, length, window))
    raise refused_attention(f"masks of type {type(mask).__name__}")


def offset_of(mask: Tensor, total: int, length: int, window: int | None) -> int:
    """The column of the whole sequence that a mask [B, H, L, M] begins with.

    Raises:
        ValueError: it has other columns than the whole sequence, or its window.
    """
    expected = {total} if window is None else {total, min(total, window - 1 + length)}
    if mask.shape[3] not in expected:
        raise ValueError(
            f"attention_mask must have {total} columns, those of the whole sequence, "
            f"got {list(mask.shape)}"
        )
    return total - mask.shape[3]


def fit_prompt_mask(
    mask: Any,
    memory: Memory | None,
    prompt: Prompt,
    columns: KeptColumns,
    window: int | None,
    attention: str,
) -> Tensor | None:
    """A prompt's mask for the columns that remain, and for what a layer held before.

    Args: as of `fit_mask`.
    """
    now, past = prompt.now, prompt.past
    length, total = now.shape[1], past + now.shape[1]
    earlier, earlier_real = held_before(memory, past, len(now), window, now.device)
    if "flash" in attention:
        check_flash_window(window, total)
        if mask is None and (columns.padded or not bool(earlier_real.all())):
            mask = now.new_ones(len(now), total)
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 4):
        offset = 0 if mask is None else offset_of(mask, total, length, window)
        return columns.take_mask(mask, earlier, earlier_real, offset)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        offset = total - mask.shape[1]
        places = (earlier - offset).clamp(min=0).to(mask.device)
        seen = (earlier_real & (earlier >= offset)).to(mask.device)
        before = mask.expand(len(now), -1).gather(1, places) * seen
        return torch.cat([before, columns.take(mask[:, -length:], False)], dim=1)
    raise refused_attention(f"masks of type {type(mask).__name__}")


def bounds_beside_gaps(prompt: Prompt, columns: KeptColumns, attention: str) -> dict[str, Any]:
    """Where the keys of a single sequence that goes on in a cache lie, for FlashAttention.

    transformers would take its positions, which have gaps, for packed sequences without a cache.
    """
    if "flash" not in attention or not prompt.past or len(prompt.now) > 1:
        return {}
    memory, device = Memory.of(prompt.cache), prompt.now.device
    earlier, _ = held_before(memory, prompt.past, 1, None, device)
    length = columns.index.shape[1]
    total = earlier.shape[1] + length
    return {
        "cu_seq_lens_q": torch.tensor([0, length], dtype=torch.int32, device=device),
        "cu_seq_lens_k": torch.tensor([0, total], dtype=torch.int32, device=device),
        "max_length_q": length,
        "max_length_k": total,
    }


def fit_model(
    given: Mapping[str, Any], call: Call, language_model: Any, past: int
) -> dict[str, Any]:
    """What the language model is to be called with for a step, where all layers hold the same."""
    cache, states = call.cache(given), given["inputs_embeds"]
    memory = Memory.of(cache)
    assert memory is not None  # who calls has looked
    config, mask = language_model.config.get_text_config(), given.get("attention_mask")
    if is_plain_step(mask, memory, states, config, attention_implementation(language_model)):
        # A mask of the whole sequence would be made into one that does not fit where a compiler
        # cannot look whether all is seen.
        now = fitting.get()
        assert now is not None  # `Step.enter_host` has set it
        now.plain = True
        return {**given, "attention_mask": None, **moved_positions(given, memory, past)}
    fit = functools.partial(
        fit_mask,
        memory=memory,
        past=past,
        states=states,
        attention=attention_implementation(language_model),
    )
    ready = isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.ndim == 4)
    masks = mask if ready else prepared_masks(config, states, mask, cache)
    if isinstance(masks, dict):
        fitted: Any = {
            kind: one if kind in KINDS else fit(one, window=window_of_kind(config, kind))
            for kind, one in masks.items()
        }
        if not ready and len(fitted) == 1:  # not every model takes masks by kind
            (fitted,) = fitted.values()
    else:
        fitted = fit(masks, window=window_of_kind(config, None))
    return {**given, "attention_mask": fitted, **moved_positions(given, memory, past)}


def is_plain_step(mask: Any, memory: Memory, states: Tensor, config: Any, attention: str) -> bool:
    """Whether one more token sees all that is held: the language model then makes no mask."""
    if memory.padded or states.shape[1] != 1 or getattr(config, "sliding_window", None):
        return False
    if attention != "sdpa" and "flash" not in attention:
        return False
    return mask is None or (isinstance(mask, Tensor) and mask.ndim == 2 and bool(mask.all()))


def moved_positions(given: Mapping[str, Any], memory: Memory, past: int) -> dict[str, Any]:
    if memory.shift is None:
        return {}
    return {"position_ids": moved(positions_of(given, past), memory)}


def positions_of(given: Mapping[str, Any], past: int) -> Tensor:
    """[B or 1, L], or [A, B, L] where there are several axes."""
    positions, states = given.get("position_ids"), given["inputs_embeds"]
    if isinstance(positions, Tensor):
        return positions
    return torch.arange(past, past + states.shape[1], device=states.device)[None]


def moved(positions: Tensor, memory: Memory) -> Tensor:
    shift = memory.shift_of_rows()
    return positions if shift is None else positions - shift[:, None].to(positions.device)


def rotary_of(
    language_model: Any, number: int, layer: Any, states: Tensor, positions: Tensor
) -> tuple[Tensor, ...]:
    """(cos, sin) of `positions`, as the language model makes them for a layer."""
    if positions.ndim == 3 and len(positions) == 4:  # the first is the text's own numbering
        positions = positions[1:]
    kind = kind_of(number, attention_in(layer).config)
    rotary = language_model.rotary_emb
    by_kind = (kind,) if "layer_type" in Call.parameters(rotary.forward) else ()
    pair: tuple[Tensor, ...] = rotary(states, positions, *by_kind)
    return pair


def check_untouched(cache: Any) -> None:
    """Raises where a cache's keys were changed by hand: which rows and columns they are is lost."""
    for layer in cache.layers:
        if getattr(layer, "memory", None) is not None and layer.keys is not layer.noted:
            raise NotImplementedError(
                "the keys of a cache from which visual tokens were removed were exchanged from "
                "outside; change its rows by batch_select_indices, batch_repeat_interleave or "
                "reorder_cache, and its length by crop"
            )
