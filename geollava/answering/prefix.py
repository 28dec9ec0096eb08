"""What the language model has read of a prompt up to its last visual token, kept for all questions.

At 8K that is 13,824 tokens: a question reads a few of its own, and attends to these.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geollava.model.configuration import GeoLlavaConfig
from geollava.model.modeling import CACHE_NAME


@dataclass(frozen=True)
class Prefix:
    """The first tokens of prompts, and the language model's keys and values of them.

    Attributes:
        ids: [L] int64 on the CPU.
    """

    ids: Tensor
    _cache: Any

    @classmethod
    @torch.no_grad()
    def read(cls, model: Any, ids: Tensor, features: Tensor) -> Prefix:
        """Reads ids [L] with features [T, text width] at the image marks in them."""
        embeds = model.embed_prompt(ids[None].to(model.device), features)
        outputs = model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        return cls(ids, getattr(outputs, CACHE_NAME))

    def cache(self, rows: int) -> Any:
        """A cache of so many rows to go on in.

        It shares its tensors with this one: layers of transformers' dynamic cache join what is
        new to what is there in a new tensor, and leave the old one as it was.
        """
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        return cache

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._cache.layers)


def prefix_bytes(config: GeoLlavaConfig, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of so many tokens."""
    text = config.text_config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_layer = 2 * text.num_key_value_heads * width * dtype.itemsize
    return text.num_hidden_layers * per_layer * tokens


def shared_length(ids: Tensor, image_token_id: int) -> int:
    """Tokens of a prompt [L] up to its last visual one, which all questions share."""
    marks = (ids == image_token_id).nonzero()
    return int(marks[-1]) + 1 if len(marks) else 0


def slides(config: GeoLlavaConfig) -> bool:
    """Whether a layer of the language model sees a window of its prompt alone."""
    kinds = getattr(config.text_config, "layer_types", None) or []
    return any(kind == "sliding_attention" for kind in kinds)
