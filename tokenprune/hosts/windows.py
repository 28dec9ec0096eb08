"""Sliding windows, which count columns of the whole sequence, and what is refused beside them."""

from __future__ import annotations

from typing import Any

from tokenprune.hosts.compat import attention_in


def window_of(number: int, layer: Any) -> int | None:
    """A decoder layer's sliding window, as its cache and mask take it from the configuration."""
    config = attention_in(layer).config
    return window_of_kind(config, kind_of(number, config))


def kind_of(number: int, config: Any) -> str | None:
    """A layer's type, None where the configuration does not tell them apart."""
    types = getattr(config, "layer_types", None)
    return None if types is None else types[number]


def window_of_kind(config: Any, kind: str | None) -> int | None:
    if kind not in (None, "sliding_attention"):
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def check_flash_window(window: int | None, length: int) -> None:
    if window is not None and length > window:
        raise NotImplementedError(
            f"FlashAttention counts a sliding window of {window} in the columns that remain, not "
            f"in the sequence of {length}; use attn_implementation sdpa or eager"
        )


def refused_attention(attention: str) -> NotImplementedError:
    return NotImplementedError(
        f"attention by {attention} cannot be shortened; "
        "use attn_implementation sdpa, eager or flash_attention_2"
    )
