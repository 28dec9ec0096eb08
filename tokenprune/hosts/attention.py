"""Reading attention without running twice: of the vision tower, and ahead of a decoder layer.

Threads may run the same layers side by side: a layer that is read in one thread attends in the
others as it always does.
"""

from __future__ import annotations

import copy
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_nobody: Mapping[nn.Module, Attend] = {}
_reading: ContextVar[Mapping[nn.Module, Attend]] = ContextVar("reading", default=_nobody)


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
    token = _reading.set({**_reading.get(), layer: function})
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
    if (function := _reading.get().get(module)) is not None:
        return function(module, *args, **kwargs)
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
    """What queries and keys of one layer say of each patch, in O(patches) memory.

    Args:
        num_prefix_tokens: 1 where the tower has a class token; then its row is the attention, else
            the mean over all queries.
        names: what is read, fields of `VisionTokens`: "attention", "received", "cls_logits",
            "single_head_attention".
    """

    def __init__(self, num_prefix_tokens: int, names: Sequence[str] = ("attention",)) -> None:
        self.num_prefix_tokens = num_prefix_tokens
        self.parts: dict[str, list[Tensor]] = {name: [] for name in names}
        self.stopwatches: list[Stopwatch] = []

    def joined(self, name: str = "attention") -> Tensor:
        """[crops, patches] of one call or several; calls image by image give [1, patches]."""
        parts = self.parts[name]
        if not parts:
            raise RuntimeError(f"the attention layer was not reached, its {name} cannot be read")
        by_image = all(len(part) == 1 for part in parts)
        return torch.cat(parts, dim=1 if by_image else 0)

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
            for name, parts in self.parts.items():
                by_head = self._by_head(name, query, key, scale)
                parts.append(by_head.mean(1)[:, self.num_prefix_tokens :])
        self.stopwatches.append(stopwatch)

    def _by_head(self, name: str, query: Tensor, key: Tensor, scale: float | None) -> Tensor:
        """[B, H, N]: what is read, prefix tokens included."""
        if name == "cls_logits":
            return class_logits(query, key, scale)
        if name == "single_head_attention":
            query, key = (side.transpose(1, 2).flatten(2)[:, None] for side in (query, key))
            return ops.cls_attention(query, key)
        if name == "attention" and self.num_prefix_tokens:
            return ops.cls_attention(query, key, scale=scale)
        received = ops.attention_received(query, key, scale=scale)
        return received if name == "received" else received / key.shape[2]


@without_autocast
def class_logits(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """[B, H, N, d] each -> [B, H, N]: the first token's attention before the softmax."""
    dtype = wide_dtype(key.dtype)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    first = query[:, :, :1].to(dtype) * scale
    return (first @ key.to(dtype).mT)[:, :, 0]


def attention_of(
    layer: Any, number: int, hidden: Tensor, queries: Tensor, given: Mapping[str, Any]
) -> Tensor:
    """What some tokens of each row attend to in a layer that has not run yet.

    Args:
        layer: a decoder layer.
        number: its number, as the cache counts them.
        hidden: [B, C, D], what it will run on.
        queries: [B, T] int64, the tokens' columns.
        given: the layer's other arguments.

    Returns:
        [B, H, T, C] float32, softmax over all that a token sees.

    Raises:
        NotImplementedError: its weights are nowhere, or earlier keys are quantized.
    """
    queries = queries.to(device_of(layer))
    call = Call.of(layer.self_attn.forward)
    cache = call.cache(call.named((), given))
    earlier = (
        cache.layers[number].keys if cache is not None and len(cache.layers) > number else None
    )
    if earlier is not None and hasattr(cache.layers[number], "_quantized_keys"):
        raise NotImplementedError(
            "tokens cannot be ranked in a prompt that goes on in a quantized cache; use a "
            "dynamic one"
        )
    noted: list[Tensor] = []
    len_now = hidden.shape[1]
    rows = torch.arange(len(hidden), device=queries.device)[:, None]

    def note(query: Tensor, key: Tensor, mask: Any, scale: float) -> None:
        if earlier is not None and earlier.numel():
            key = torch.cat([earlier.to(key), key], dim=2)
        asking = query.transpose(1, 2)[rows, queries].transpose(1, 2) * scale
        noted.append(attention_rows(asking, key, mask, queries, len_now))

    attend_ahead(layer, hidden, given, note)
    return noted[0][..., -len_now:]


def projections_of(layer: Any, hidden: Tensor, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Queries [B, H, C, d] and keys [B, G, C, d], rotated, of a layer that has not run yet.

    Args: as of `attention_of`.
    """
    noted: list[tuple[Tensor, Tensor]] = []
    attend_ahead(layer, hidden, given, lambda query, key, *_: noted.append((query, key)))
    return noted[0]


def attend_ahead(
    layer: Any,
    hidden: Tensor,
    given: Mapping[str, Any],
    note: Callable[[Tensor, Tensor, Any, float], None],
) -> None:
    """Hands `note` the queries, keys, mask and scale by which a layer would attend."""

    def noting(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        note(query, key, mask, kwargs.get("scaling") or query.shape[3] ** -0.5)
        batch, heads, length, _ = query.shape
        return value.new_zeros(batch, length, heads, value.shape[3]), None

    device, attention = device_of(layer), layer.self_attn
    call = Call.of(attention.forward)
    arguments = {name: _to(device, value) for name, value in call.named((), given).items()}
    arguments |= {call.cache_name: None, "use_cache": False}
    # A twin with the same weights: other threads may be attending in the layer itself.
    twin = copy.copy(attention)
    twin.config = naming_ours(attention.config)
    token = _reading.set({twin: noting})
    try:
        # The class's `forward`, not a call: hooks that collect outputs must not see this one.
        type(twin).forward(twin, layer.input_layernorm(hidden.to(device)), **arguments)
    finally:
        _reading.reset(token)


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
def attention_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, queries: Tensor, length: int
) -> Tensor:
    """[B, H, T, d], scaled, and [B, G, M, d] with H a multiple of G -> [B, H, T, M].

    `mask` is [B or 1, 1, length, M] boolean or additive, [B, M], or None for causal attention;
    `queries` [B, T] are the columns, of the last `length`.
    """
    dtype = wide_dtype(key.dtype)
    batch, groups, held, _ = key.shape
    grouped = query.to(dtype).unflatten(1, (groups, -1))  # [B, G, H / G, T, d]
    logits = (grouped @ key.to(dtype).mT[:, :, None]).flatten(1, 2)
    if mask is not None and mask.ndim == 4:
        index = queries[:, None, :, None].to(mask.device)
        taken = mask.expand(batch, -1, -1, -1).gather(
            2, index.expand(-1, mask.shape[1], -1, mask.shape[3])
        )
        logits = (
            logits.masked_fill(~taken, -torch.inf) if taken.dtype == torch.bool else logits + taken
        )
    else:
        columns = torch.arange(held, device=key.device)
        seen = columns <= queries[:, :, None] + held - length
        if mask is not None:
            seen = seen & mask.bool()[:, None]
        logits = logits.masked_fill(~seen[:, None], -torch.inf)
    return logits.softmax(-1)
