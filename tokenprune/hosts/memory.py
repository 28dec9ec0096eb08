"""Memory: the one thing that a reduction leaves on a cache.

A cache whose prompt was shortened reports the original length, so that hosts and `generate` count
positions, masks and further tokens as if nothing had left, with or without a handle in force.
Masks come in columns of the whole sequence; of these each layer takes the ones that it holds.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.hosts.sequence import KeptColumns


@dataclass
class Fitting:
    """A forward of ours that fits the masks and positions for one cache.

    Attributes:
        origin: the cache's.
        in_force: whether the reduction still is; an interrupt may have left this behind.
        plain: one more token sees all that is held; whoever makes a mask of nothing, as compiled
            models may, makes it as wide as that.
    """

    origin: Origin
    in_force: Callable[[], bool]
    plain: bool = False


fitting: ContextVar[Fitting | None] = ContextVar("fitting", default=None)


class Origin:
    """What the layers of one cache share.

    Attributes:
        language_model: weak reference to the one that filled the cache.
        fit_in_layers: called where a mask is made for the cache that no forward of ours fits.
        moved: in some layer the positions of what follows have moved.
        pending: hooks that will fit the layers' arguments.
    """

    def __init__(
        self,
        language_model: weakref.ref[nn.Module],
        fit_in_layers: Callable[[Origin], None],
        moved: bool = False,
    ) -> None:
        self.language_model = language_model
        self.fit_in_layers = fit_in_layers
        self.moved = moved
        self.pending: Any = None

    def __deepcopy__(self, memo: Any) -> Origin:
        return Origin(self.language_model, self.fit_in_layers, self.moved)

    @property
    def is_fitted(self) -> bool:
        now = fitting.get()
        return now is not None and now.origin is self and now.in_force()

    def drop_pending(self) -> None:
        """Hooks that a forward has left which failed midway."""
        if self.pending is not None:
            self.pending.remove()
            self.pending = None


@dataclass(frozen=True)
class Memory:
    """What one layer of a cache holds of a shortened prompt.

    Attributes:
        length: columns of the whole sequence, up to the prompt's end.
        columns: [B, C] int64, the column that each entry comes from; None for all of them.
        real: [B, C] bool, False where an entry only fills a row up; None with `columns`.
        padded: whether there are such entries.
        group: a number that layers with the same entries share.
        uniform: all layers hold the same.
        shift: [B] int64, how far the positions that follow have moved; None where they have not.
        origin: shared by all layers of the cache.
        rows: [B'] int64, which of the prompt's rows each row of the cache is now; None: the same.
        bias: [B, C] float32, what attention adds to each entry's logits; None for nothing.
    """

    length: int
    columns: Tensor | None
    real: Tensor | None
    padded: bool
    group: int
    uniform: bool
    shift: Tensor | None
    origin: Origin
    rows: Tensor | None = None
    bias: Tensor | None = None

    @staticmethod
    def of(cache: Any, number: int | None = None) -> Memory | None:
        """Of one layer, or of the first that has one: recurrent layers hold no columns."""
        layers = [] if cache is None else cache.layers
        if number is not None:
            layers = layers[number : number + 1]
        found = (getattr(layer, "memory", None) for layer in layers)
        return next((memory for memory in found if memory is not None), None)

    def picked(self, change: Callable[[Tensor], Tensor], batch: int) -> Memory:
        """After a change of the cache's rows."""
        rows = torch.arange(batch) if self.rows is None else self.rows
        return replace(self, rows=change(rows))

    def entries(self, past: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """([B, K], [B, K]): columns and real of all that is held before a step.

        Args:
            past: columns of the whole sequence, at least `length`.
        """
        columns, real = self.columns, self.real
        if columns is None or real is None:
            return None, None
        if self.rows is not None:
            rows = self.rows.to(columns.device)
            columns, real = columns[rows], real[rows]
        later = torch.arange(self.length, past, device=columns.device).expand(len(columns), -1)
        columns = torch.cat([columns, later], dim=1)
        real = torch.cat([real, torch.ones_like(later, dtype=torch.bool)], dim=1)
        return columns.to(device), real.to(device)

    def biases(self, total: int, device: torch.device) -> Tensor | None:
        """[B, K]: `bias` of all that is held, `total` entries with those after the prompt."""
        if self.bias is None:
            return None
        bias = self.bias if self.rows is None else self.bias[self.rows.to(self.bias.device)]
        return nn.functional.pad(bias, (0, total - bias.shape[1])).to(device)

    def shift_of_rows(self) -> Tensor | None:
        if self.shift is None or self.rows is None:
            return self.shift
        return self.shift[self.rows.to(self.shift.device)]

    def cropped(self, length: int) -> tuple[Memory, int]:
        """After a crop to `length` columns, and how many entries of the prompt go with it.

        Raises:
            NotImplementedError: rows would lose different numbers of entries.
        """
        if length >= self.length or self.columns is None or self.real is None:
            return replace(self, length=min(length, self.length)), 0
        gone = self.real & (self.columns >= length)
        counts = gone.sum(1)
        lost = int(counts[0])
        if self.shift is not None and lost != self.length - length:
            raise NotImplementedError(
                f"a cache with positions='compact' cannot be cropped to {length} columns, among "
                "those from which visual tokens were removed"
            )
        if bool((counts != lost).any()) or not bool(gone[:, gone.shape[1] - lost :].all()):
            raise NotImplementedError(
                f"a cache of {self.length} columns, from which visual tokens were removed, cannot "
                f"be cropped to {length}: its rows hold different columns there"
            )
        held = self.columns.shape[1] - lost
        bias = None if self.bias is None else self.bias[:, :held]
        columns, real = self.columns[:, :held], self.real[:, :held]
        return replace(self, length=length, columns=columns, real=real, bias=bias), lost


class ShortenedLayer:
    """What a cache's layer becomes, beside the class that it has: it reports the original length.

    `shortened` makes subclasses of cache layers with these methods; `own` is their parent.

    Attributes:
        memory: what it holds of the prompt.
        removed: columns of the whole sequence that it counts, and does not hold.
        noted: its keys, as they were seen last.
    """

    is_compileable = False
    memory: Memory
    removed: int
    noted: Tensor | None
    keys: Tensor
    cumulative_length: int

    def get_seq_length(self) -> int:
        length: int = own(self).get_seq_length()
        return length + self.removed if length else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        # Where no forward of ours fits the mask that is about to be made, the layers must.
        origin = self.memory.origin
        origin.drop_pending()
        now = fitting.get()
        if now is None or not origin.is_fitted:
            origin.fit_in_layers(origin)
        elif now.plain:
            held = self.keys.shape[-2]
            return held + query_length, self.get_seq_length() - held
        sizes: tuple[int, int] = own(self).get_mask_sizes(query_length)
        return sizes

    def update(self, *args: Any, **kwargs: Any) -> Any:
        fitted = self.__dict__.pop("fitted", False)
        if self.memory.columns is not None and not fitted and not self.memory.origin.is_fitted:
            raise RuntimeError(
                "a cache from which visual tokens were removed goes on in the model that filled "
                "it alone, all its layers together, with an attention_mask of [B, columns of the "
                "whole sequence] or none"
            )
        self.noted = None  # the old keys' memory is wanted for the new values
        held = own(self).update(*args, **kwargs)
        self.noted = self.keys
        return held

    def offload(self) -> None:
        own(self).offload()
        self.noted = self.keys

    def prefetch(self) -> None:
        own(self).prefetch()
        self.noted = self.keys

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.memory = self.memory.picked(
            lambda rows: rows[beam_idx.to(rows.device)], len(self.keys)
        )
        own(self).reorder_cache(beam_idx)
        self.noted = self.keys

    def batch_select_indices(self, indices: Tensor) -> None:
        chosen = torch.as_tensor(indices)
        self.memory = self.memory.picked(lambda rows: rows[chosen.to(rows.device)], len(self.keys))
        own(self).batch_select_indices(indices)
        self.noted = self.keys

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.memory = self.memory.picked(
            lambda rows: rows.repeat_interleave(repeats), len(self.keys)
        )
        own(self).batch_repeat_interleave(repeats)
        self.noted = self.keys

    def crop(self, tokens_to_remove: int) -> None:
        before, number = self.get_seq_length(), int(tokens_to_remove)  # some give a tensor
        # Releases before 5.18 take a length, too.
        count = max(0, before - number) if number > 0 else -number
        if count >= before:
            self.reset()
            return
        memory, lost = self.memory.cropped(before - count)
        # Entries that go: what followed the prompt, and what of the prompt is held in that range.
        entries = min(count, before - self.memory.length) + lost
        if self.memory.columns is None:
            entries = count
        own(self).crop(-entries)
        if hasattr(self, "cumulative_length"):
            self.cumulative_length = before - count
        else:
            self.removed -= count - entries
        self.memory, self.noted = memory, self.keys

    def reset(self) -> None:
        """Empty, it is what it was."""
        self.__class__ = type(self).__base__  # type: ignore[assignment]
        for name in ("memory", "removed", "noted", "fitted"):
            self.__dict__.pop(name, None)
        # Releases before 5.23 zero what is held, and would go on counting it.
        self.__dict__.update(keys=None, values=None, is_initialized=False)
        self.reset()


def has_bias(cache: Any) -> bool:
    """Whether attention adds something to what a layer of the cache holds."""
    layers = [] if cache is None else cache.layers
    memories = (Memory.of(cache, number) for number in range(len(layers)))
    return any(memory is not None and memory.bias is not None for memory in memories)


def own(layer: Any) -> Any:
    return super(type(layer), layer)


@functools.cache
def shortened(layer_class: Any) -> type[Any]:
    """A subclass that objects of `layer_class` can change to: of one parent, or layouts differ."""
    methods = {
        name: value
        for name, value in vars(ShortenedLayer).items()
        if callable(value) or name == "is_compileable"
    }
    # `_layer_type` would register the class for new caches.
    return type(layer_class.__name__, (layer_class,), {**methods, "_layer_type": None})


def remember(
    cache: Any,
    kept: Sequence[KeptColumns | None],
    length: int,
    past: int,
    shifts: Sequence[Tensor | None],
    origin: Origin,
) -> None:
    """Leaves a memory on a cache that a shortened prompt has just filled.

    Args:
        kept: for each layer, of the prompt's `length` columns; None for all.
        past: columns of the whole sequence before the prompt.
        shifts: for each layer, of the positions that follow.
        origin: new, for all layers.
    """
    made: dict[Any, Memory] = {}
    origin.moved = any(shift is not None for shift in shifts)
    with_keys = [  # the others were not used, or are recurrent
        (layer, getattr(layer, "memory", None), columns, shift)
        for layer, columns, shift in zip(cache.layers, kept, shifts, strict=False)
        if getattr(layer, "keys", None) is not None
    ]
    keys = [
        (id(columns), None if before is None else before.group)
        for _, before, columns, _ in with_keys
    ]
    for (layer, before, columns, shift), key in zip(with_keys, keys, strict=True):
        if key not in made:
            now, real = joined(columns, length, past, before)
            uniform = len(set(keys)) == 1
            padded = real is not None and not bool(real.all())
            bias = None if columns is None else columns.bias
            made[key] = Memory(
                past + length, now, real, padded, len(made), uniform, shift, origin, bias=bias
            )
        if before is None:
            kind: Any = type(layer)
            layer.__class__, layer.removed = shortened(kind), 0
        layer.memory, layer.noted = made[key], layer.keys
        removed = 0 if columns is None else length - columns.index.shape[1]
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length += removed
        else:
            layer.removed += removed


def joined(
    kept: KeptColumns | None, length: int, past: int, before: Memory | None
) -> tuple[Tensor | None, Tensor | None]:
    """([B, C], [B, C]): columns and real of what was held before, and of the prompt."""
    columns = real = None
    if before is not None and before.columns is not None:
        columns, real = before.entries(past, before.columns.device)
    if kept is None:
        if columns is None or real is None:
            return None, None
        now = torch.arange(past, past + length, device=columns.device).expand(len(columns), -1)
        now_real = torch.ones_like(now, dtype=torch.bool)
    else:
        now, now_real = past + kept.index, kept.real
        if columns is None or real is None:
            columns = torch.arange(past, device=now.device).expand(len(now), -1)
            real = torch.ones_like(columns, dtype=torch.bool)
    return torch.cat([columns.to(now.device), now], 1), torch.cat(
        [real.to(now.device), now_real], 1
    )
