"""Recurrent and convolutional layers, among layers of attention: Qwen3.5, LFM2, Nemotron-H.

A token that leaves is hidden in layers of attention; those layers that go on from token to token,
by a state or a short convolution, run as if it had never been there. That is what a shorter prompt
does, and what `verify` compares with. It is exact as long as what is left of a row stays together:
padding comes before a row's first token, never between two.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenprune.hosts.prompt import Prompt
from tokenprune.hosts.sequence import KeptColumns

# Kinds of layers as configurations and dictionaries of masks name them. Their mask is [B, L] of a
# forward's own columns, False where padding, or None.
KINDS = {"linear_attention", "conv"}
MASKS = ("attention_mask", "conv_mask")  # under what name a mixer takes it


def mixers(language_model: nn.Module) -> list[nn.Module]:
    """The modules that go on from token to token: those with a convolution of their own."""
    return [
        module
        for module in language_model.modules()
        if any(isinstance(child, nn.Conv1d) for child in module.children())
    ]


def fit_recurrent_mask(mask: Tensor | None, prompt: Prompt, columns: KeptColumns) -> Tensor | None:
    """A prompt's mask [B, L] for such layers -> [B, L'] of the columns that remain."""
    if mask is None and not columns.padded:
        return None
    return columns.take(prompt.now if mask is None else mask, False)


def refuse_padding_between(language_model: Any, prompt: Prompt, columns: KeptColumns) -> None:
    """Raises where rows of unequal length would be filled up after what the cache holds.

    Raises:
        NotImplementedError: so it is, and the model has such layers.
    """
    if prompt.past and columns.padded and mixers(language_model):
        raise NotImplementedError(
            "new images in a cache keep different numbers of tokens in the batch's rows; recurrent "
            "layers would run over the padding between: pass one row at a time"
        )
