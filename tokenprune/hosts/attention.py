"""Reading attention without running twice: of the vision tower, and ahead of a decoder layer.

Threads may run the same layers side by side: a layer that is read in one thread attends in the
others as it always does.
"""

from __future__ import annotations

import copy
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune import ops
from tokenprune.hosts.compat import Call, attention_functions, attention_implementation
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.ops.common.precision import wide_dtype, without_autocast

Attend = Callable[..., Any]
_NAME = "tokenprune_reads_attention"  # stays in transformers' table; a layer's config names it


@dataclass
class Exchange:
    """A layer whose configuration names `attend_or_read`.

    Attributes:
        config: its own, put back in the end.
        attend: how it attends by it.
        readers: how many threads are reading.
    """

    config: Any
    attend: Attend
    readers: int = 0


_lock = threading.RLock()
_exchanges: weakref.WeakKeyDictionary[nn.Module, Exchange] = weakref.WeakKeyDictionary()
_reading: ContextVar[tuple[nn.Module, Attend] | None] = ContextVar("reading", default=None)


@contextmanager
def attention_exchanged(layer: Any, function: Attend) -> Iterator[None]:
    """For as long as it lasts, `layer` attends by `function` in this thread alone."""
    with _lock:
        exchange = _exchanges.get(layer)
        if exchange is None:
            exchange = _exchanges[layer] = Exchange(layer.config, real_attention(layer))
            # Only this layer's own configuration is exchanged.
            layer.config = naming_ours(layer.config)
        exchange.readers += 1
    token = _reading.set((layer, function))
    try:
        yield
    finally:
        _reading.reset(token)
        with _lock:
            exchange.readers -= 1
            if not exchange.readers:
                layer.config = exchange.config
                del _exchanges[layer]


def naming_ours(config: Any) -> Any:
    """A copy of a layer's configuration by which it attends by `attend_or_read`."""
    attention_functions()[_NAME] = attend_or_read
    ours = copy.copy(config)
    ours._attn_implementation_internal = _NAME
    return ours


def attend_or_read(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    reading = _reading.get()
    if reading is not None and reading[0] is module:
        return reading[1](module, *args, **kwargs)
    exchange = _exchanges.get(module)  # None: the last reader has just gone
    attend = real_attention(module) if exchange is None else exchange.attend
    return attend(module, *args, **kwargs)


class AsItWas:
    """A layer with its own configuration: FlashAttention takes its kernel from the name there."""

    def __init__(self, layer: nn.Module, config: Any) -> None:
        self.layer, self.config = layer, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


def real_attention(layer: Any) -> Attend:
    """The function by which a layer attends."""
    with _lock:  # another thread may be exchanging the configuration
        exchange, config = _exchanges.get(layer), layer.config
    if exchange is not None:
        return exchange.attend
    eager = getattr(sys.modules[type(layer).__module__], "eager_attention_forward", None)
    name = attention_implementation(SimpleNamespace(config=config))
    function = attention_functions().get_interface(name, eager)

    def attend(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return function(AsItWas(module, config), *args, **kwargs)

    return attend


class AttentionReader:
    """The attention that each patch receives in one layer, in O(patches) memory.

    Args:
        num_prefix_tokens: 1 where the tower has a class token; then its row is read, else the mean
            over all queries.
    """

    def __init__(self, num_prefix_tokens: int) -> None:
        self.num_prefix_tokens = num_prefix_tokens
        self.parts: list[Tensor] = []
        self.stopwatches: list[Stopwatch] = []

    def joined(self) -> Tensor:
        """[crops, patches] of one call or several; calls image by image give [1, patches]."""
        if not self.parts:
            raise RuntimeError("the attention layer was not reached, its scores cannot be read")
        by_image = all(len(part) == 1 for part in self.parts)
        return torch.cat(self.parts, dim=1 if by_image else 0)

    @contextmanager
    def reading(self, layer: nn.Module) -> Iterator[None]:
        """For as long as it lasts, queries and keys of `layer` pass by us on their way."""
        attend = real_attention(layer)

        def passing_by(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            self.read(query, key, kwargs.get("scaling"))
            return attend(module, query, key, value, *args, **kwargs)

        with attention_exchanged(layer, passing_by):
            yield

    @torch.no_grad()
    def read(self, query: Tensor, key: Tensor, scale: float | None) -> None:
        with Stopwatch(query.device) as stopwatch:
            if self.num_prefix_tokens:
                received = ops.cls_attention(query, key, scale=scale)
            else:
                received = ops.attention_received(query, key, scale=scale) / key.shape[2]
            self.parts.append(received.mean(1)[:, self.num_prefix_tokens :])
        self.stopwatches.append(stopwatch)


def attention_of(
    layer: Any, number: int, hidden: Tensor, queries: Tensor, given: Mapping[str, Any]
) -> Tensor:
    """What one token of each row attends to in a layer that has not run yet.

    Args:
        layer: a decoder layer.
        number: its number, as the cache counts them.
        hidden: [B, C, D], what it will run on.
        queries: [B] int64, the token's column.
        given: the layer's other arguments.

    Returns:
        [B, C] float32, softmax over all that the token sees, mean over heads.

    Raises:
        NotImplementedError: its weights are nowhere, or earlier keys are quantized.
    """
    device = device_of(layer)
    rows = torch.arange(len(hidden), device=device)
    queries = queries.to(device)
    attention = layer.self_attn
    call = Call.of(attention.forward)
    given = call.named((), given)
    cache = call.cache(given)
    earlier = (
        cache.layers[number].keys if cache is not None and len(cache.layers) > number else None
    )
    if earlier is not None and hasattr(cache.layers[number], "_quantized_keys"):
        raise NotImplementedError(
            "tokens cannot be ranked in a prompt that goes on in a quantized cache; use a "
            "dynamic one"
        )
    noted: list[Tensor] = []

    def noting(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if earlier is not None and earlier.numel():
            key = torch.cat([earlier.to(key), key], dim=2)
        scale = kwargs.get("scaling") or query.shape[3] ** -0.5
        noted.append(attention_row(query[rows, :, queries] * scale, key, mask, queries, len_now))
        batch, heads, length, _ = query.shape
        return value.new_zeros(batch, length, heads, value.shape[3]), None

    len_now = hidden.shape[1]
    arguments = {name: _to(device, value) for name, value in given.items()}
    arguments |= {call.cache_name: None, "use_cache": False}
    # A twin with the same weights: other threads may be attending in the layer itself.
    twin = copy.copy(attention)
    twin.config = naming_ours(attention.config)
    token = _reading.set((twin, noting))
    try:
        # The class's `forward`, not a call: hooks that collect outputs must not see this one.
        type(twin).forward(twin, layer.input_layernorm(hidden.to(device)), **arguments)
    finally:
        _reading.reset(token)
    return noted[0][:, -len_now:]


def device_of(layer: Any) -> torch.device:
    """Where a layer computes."""
    device = next(layer.parameters()).device
    if device.type != "meta":
        return device
    # accelerate has offloaded its weights; hooks in its parts bring them there when they run.
    found = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    if found is None:
        raise NotImplementedError(
            f"{type(layer).__name__} cannot be read ahead of its run: its weights are on the meta "
            "device, and no hook of accelerate says where it runs; keep them on a device"
        )
    return torch.device(found)


def _to(device: torch.device, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_to(device, part) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


@without_autocast
def attention_row(
    query: Tensor, key: Tensor, mask: Tensor | None, queries: Tensor, length: int
) -> Tensor:
    """[B, H, d], scaled, and [B, G, M, d] with H a multiple of G -> [B, M], mean over heads.

    `mask` is [B or 1, 1, length, M] boolean or additive, [B, M], or None for causal attention.
    """
    dtype = wide_dtype(key.dtype)
    batch, groups, held, _ = key.shape
    logits = query.to(dtype).unflatten(1, (groups, -1)) @ key.to(dtype).mT  # [B, G, H / G, M]
    logits = logits.flatten(1, 2)
    if mask is not None and mask.ndim == 4:
        rows = torch.arange(batch, device=mask.device)
        row = mask.expand(batch, -1, -1, -1)[rows, :, queries]  # [B, 1, M]
        logits = logits.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else logits + row
    else:
        columns = torch.arange(held, device=key.device)
        seen = columns <= queries[:, None] + held - length
        if mask is not None:
            seen = seen & mask.bool()
        logits = logits.masked_fill(~seen[:, None], -torch.inf)
    return logits.softmax(-1).mean(1)
