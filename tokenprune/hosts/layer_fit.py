"""A step's arguments, fitted to what each layer of a cache holds, as the layer is entered.

Under a handle whose method works between the layers its own hooks see to it. Else, also without any
handle, hooks do that last for one forward.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.hosts.compat import CACHE_NAMES, attention_implementation, attention_in
from tokenprune.hosts.masks import check_untouched, fit_mask, moved, offset_of, rotary_of
from tokenprune.hosts.memory import Memory, Origin
from tokenprune.hosts.windows import kind_of, window_of

# The positions that the language model was called with in this thread: layers are not told.
positions_now: ContextVar[Tensor | None] = ContextVar("positions_now", default=None)


class LayerFit:
    """Of one forward; layers share what is made."""

    def __init__(self) -> None:
        self.made: dict[Any, Any] = {}

    def fit(
        self,
        number: int,
        layer: Any,
        states: Tensor,
        given: Mapping[str, Any],
        cache: Any,
    ) -> dict[str, Any]:
        """The arguments of layer `number` for what it holds."""
        memory = Memory.of(cache, number)
        if memory is None:
            return dict(given)
        past = cache.layers[number].get_seq_length()
        mask, window = given.get("attention_mask"), window_of(number, layer)
        changed: dict[str, Any] = {}
        if memory.columns is not None:
            key = memory.group, window, id(mask)
            if key not in self.made:
                attention = attention_implementation(attention_in(layer))
                self.made[key] = fit_mask(mask, memory, past, states, window, attention), mask
            # Layers look at positions only to find packed sequences, which gaps would pass for.
            changed = {"attention_mask": self.made[key][0], "position_ids": None}
        if memory.shift is not None:
            changed["position_embeddings"] = self.rotary(number, layer, states, memory)
        cache.layers[number].fitted = True
        return {**given, **changed}

    def rotary(self, number: int, layer: Any, states: Tensor, memory: Memory) -> Any:
        positions = positions_now.get()
        assert positions is not None  # `fit_in_layers` has looked
        key = "rotary", memory.group, kind_of(number, attention_in(layer).config)
        if key not in self.made:
            model = memory.origin.language_model()
            self.made[key] = rotary_of(model, number, layer, states, moved(positions, memory))
        return self.made[key]


def fit_in_layers(origin: Origin) -> None:
    """For one forward, the layers that fill a cache fit their arguments to what each holds."""
    if origin.moved and positions_now.get() is None:
        raise NotImplementedError(
            "a cache of a prompt with positions='compact' can only be continued while a "
            "reduction is applied; apply again, or use positions='original'"
        )
    model = origin.language_model()
    if model is None:
        raise RuntimeError(
            "this cache was filled by another model, with visual tokens removed; it cannot be "
            "continued here"
        )
    origin.pending = LayerHooks(origin, list(model.layers))  # type: ignore[arg-type]


def prepare_layers(given: Mapping[str, Any], memory: Memory, past: int) -> None:
    """Before a step whose layers hold different columns: a mask that is ready asks no cache."""
    mask, length = given.get("attention_mask"), given["inputs_embeds"].shape[1]
    if isinstance(mask, Tensor) and mask.ndim == 4:
        offset_of(mask, past + length, length, None)
        memory.origin.drop_pending()
        if not memory.origin.is_fitted:
            memory.origin.fit_in_layers(memory.origin)


class LayerHooks:
    """Hooks for one forward; each goes when it has done its work."""

    def __init__(self, origin: Origin, layers: list[nn.Module]) -> None:
        self.origin, self.fit = weakref.ref(origin), LayerFit()
        self.hooks = {
            number: layer.register_forward_pre_hook(
                torch.compiler.disable(functools.partial(self.before_layer, number)),
                with_kwargs=True,
            )
            for number, layer in enumerate(layers)
        }
        self.finalizer = weakref.finalize(origin, self.remove)

    def remove(self) -> None:
        for hook in self.hooks.values():
            hook.remove()
        self.hooks, self.fit = {}, LayerFit()
        self.finalizer.detach()

    def before_layer(self, number: int, layer: Any, args: Any, kwargs: Any = None) -> Any:
        if kwargs is None:  # another thread's hook, which it has just removed
            return None
        cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
        memory, origin = Memory.of(cache), self.origin()
        if memory is None or origin is None or memory.origin is not origin:
            return None  # a forward of another thread
        self.hooks.pop(number).remove()
        states = args[0] if args else kwargs["hidden_states"]
        try:
            if number == 0:
                check_untouched(cache)
            fitted = self.fit.fit(number, layer, states, kwargs, cache)
        except BaseException:
            origin.drop_pending()
            raise
        if not self.hooks:
            origin.drop_pending()
        return args, fitted
