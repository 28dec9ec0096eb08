"""Reduction between the layers of the language model: later layers see, and cache, fewer columns.

The first layer holds the whole prompt, so the host counts positions, columns and new tokens as if
nothing were removed. What reaches a later layer is cut to that layer's columns here: hidden states,
rotary embeddings and mask alike. In the steps after the prompt the mask of such a layer is made for
the columns that it has cached.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapter import Adapter, ImageLayout
from tokenprune.budget import Budget
from tokenprune.hosts.cache_state import remember_rows
from tokenprune.hosts.compat import Call, attention_implementation, check_layer
from tokenprune.hosts.encoder import attention_exchanged
from tokenprune.hosts.reduction import ReducedGrids, ReducedImages
from tokenprune.hosts.sequence import KeptColumns, edge_padding
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.method import LayerMethod
from tokenprune.ops.common.checks import check_finite
from tokenprune.ops.common.precision import wide_dtype, without_autocast
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import VisionTokens

_ATTRIBUTE = "_tokenprune_layers"


def check_layers(adapter: Adapter, method: LayerMethod, positions: str) -> None:
    """Raises unless the method can work between the layers of this host.

    Raises:
        NotImplementedError: layers that are not known, or positions that would change midway.
        ValueError: the method's options do not fit the number of layers.
    """
    name = type(method).__name__
    if positions == "compact":
        raise NotImplementedError(
            f"positions='compact' is not supported with {name}: the layers before it have used the "
            "original positions"
        )
    layers = adapter.decoder_layers
    for layer in layers:
        check_layer(layer)
    method.cuts(len(layers))


@dataclass
class ImageGroup:
    """Images of one size.

    Attributes:
        positions: [G, N] int64, the place of each token among all visual tokens of the batch.
        grid_size: of their tokens; one row where they are no single grid.
        counts: tokens that remain after each cut.
        kept: [G, K] int64 ascending, those that remain now.
    """

    positions: Tensor
    grid_size: tuple[int, int]
    counts: list[int]
    kept: Tensor

    def shrinks(self, turn: int) -> bool:
        return self.counts[turn] < self.kept.shape[1]

    def cut(self, turn: int, scores: Tensor) -> None:
        """`scores`: [P] of all visual tokens of the batch."""
        ranks = scores[self.positions.gather(1, self.kept)]
        self.kept = self.kept.gather(1, best(ranks, self.counts[turn]))


def group_images(
    layouts: Sequence[ImageLayout],
    method: LayerMethod,
    budget: Budget,
    num_cuts: int,
    device: torch.device,
) -> list[ImageGroup]:
    members: dict[tuple[int, tuple[int, int]], list[int]] = {}
    offset = 0
    for layout in layouts:
        size = layout.num_tokens
        grid = layout.grids[0]
        shape = (grid.rows, grid.cols) if grid.num_tokens == size else (1, size)
        members.setdefault((size, shape), []).append(offset)
        offset += size
    groups = []
    for (size, shape), starts in members.items():
        numbers = torch.arange(size, device=device).repeat(len(starts), 1)
        counts = method.counts(size, budget.kept_of(size), num_cuts)
        positions = numbers + torch.tensor(starts, device=device)[:, None]
        groups.append(ImageGroup(positions, shape, counts, numbers))
    return groups


class LayerReduction:
    """One prompt on its way through the layers.

    Args:
        method: says where tokens leave, and how many.
        budget: of an image.
        layouts: one per image, in the order of their placeholders.
        placeholders: [B, L] bool.
        now: [B, L] bool, False where padding.
        prompt_ends: [B] int64, the column of each row's last prompt token.
        past: columns that the cache holds already.
        num_layers: of the language model.

    Attributes:
        columns: what is left in the current layer; None for all.
        by_layer: the same for each layer that has begun.
    """

    def __init__(
        self,
        method: LayerMethod,
        budget: Budget,
        layouts: Sequence[ImageLayout],
        placeholders: Tensor,
        now: Tensor,
        prompt_ends: Tensor,
        past: int,
        num_layers: int,
    ) -> None:
        self.method = method
        self.num_layers = num_layers
        self.cuts = method.cuts(num_layers)
        self.layouts = layouts
        self.budget = budget
        self.groups = group_images(layouts, method, budget, len(self.cuts), placeholders.device)
        self.placeholders = placeholders
        padding, self.pad_left = edge_padding(now)
        self.real = ~padding
        self.prompt_ends = prompt_ends
        self.past = past
        self.columns: KeptColumns | None = None
        self.by_layer: list[KeptColumns | None] = []
        self.scores = torch.zeros(int(placeholders.sum()), device=placeholders.device)
        self.stopwatches: list[Stopwatch] = []
        self._deepstack: tuple[Tensor, Sequence[Tensor]] | None = None
        self._fitted: dict[int, tuple[Any, Any]] = {}

    @property
    def finished(self) -> bool:
        return len(self.by_layer) == self.num_layers

    def take_deepstack(self, given: dict[str, Any]) -> dict[str, Any]:
        """Image features that the host adds between layers are added here, where columns are known.

        Raises:
            NotImplementedError: some are added after the last layer.
        """
        features = given.get("deepstack_visual_embeds")
        if not features or not any(self._shrinks(turn) for turn in range(len(self.cuts))):
            return given
        if len(features) >= self.num_layers:
            raise NotImplementedError(
                f"{type(self.method).__name__} cannot follow image features that are added after "
                "the last layer"
            )
        self._deepstack = given["visual_pos_masks"], features
        return given | {"visual_pos_masks": None, "deepstack_visual_embeds": None}

    def enter(
        self, number: int, layer: nn.Module, hidden: Tensor, given: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """What layer `number` is to run on instead of `hidden` [B, L, D] and its arguments."""
        hidden = self._add_deepstack(number, hidden)
        with Stopwatch(hidden.device) as stopwatch:
            for turn, cut in enumerate(self.cuts):
                if cut.ranked_in == number and self._shrinks(turn):
                    self._rank(number, layer, hidden, self._fit(number, layer, given))
                if cut.before == number and self._shrinks(turn):
                    hidden = self._cut(turn, hidden)
            given = self._fit(number, layer, given)
        self.stopwatches.append(stopwatch)
        self.by_layer.append(self.columns)
        return hidden, given

    def enter_again(
        self, number: int, layer: nn.Module, hidden: Tensor, given: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """The same as `enter` has done before: a checkpointed layer runs again in the backward."""
        columns, again = self.by_layer[number], copy.copy(self)
        again.columns, again._fitted = self.by_layer[number - 1] if number else None, {}
        hidden = again._add_deepstack(number, hidden)
        if columns is not None and columns is not again.columns:
            hidden = again._shorten(columns, hidden)
        return hidden, again._fit(number, layer, given)

    def images(self, features: Tensor) -> ReducedImages:
        """`features`: [P, D] of all visual tokens, as they came into the first layer."""
        keep = torch.zeros_like(self.scores, dtype=torch.bool)
        grids = []
        for group in self.groups:
            keep[group.positions.gather(1, group.kept)] = True
            tokens = VisionTokens(features[group.positions], group.grid_size)
            reduced = select_tokens(tokens, group.kept, self.scores[group.positions])
            grids.append(ReducedGrids(group.positions, reduced))
        before = [layout.num_tokens for layout in self.layouts]
        return ReducedImages(keep, grids, before, [self.budget.kept_of(size) for size in before])

    def _shrinks(self, turn: int) -> bool:
        return any(group.shrinks(turn) for group in self.groups)

    def _add_deepstack(self, number: int, hidden: Tensor) -> Tensor:
        if self._deepstack is None or not 1 <= number <= len(self._deepstack[1]):
            return hidden
        mask, features = self._deepstack[0], self._deepstack[1][number - 1].to(hidden)
        if self.columns is not None:
            features = features[self.columns.keep[mask]]
            mask = self.columns.take(mask, False)
        mask = mask.to(hidden.device)
        hidden = hidden.clone()
        hidden[mask] = hidden[mask] + features
        return hidden

    @torch.no_grad()
    def _rank(self, number: int, layer: Any, hidden: Tensor, given: Mapping[str, Any]) -> None:
        columns, ends = self.columns, self.prompt_ends[:, None]
        if columns is not None:
            ends = columns.places.gather(1, ends)
        received = attention_of(layer, number, hidden, ends[:, 0], given).to(self.real.device)
        if columns is not None:
            whole = received.new_zeros(self.real.shape)
            received = whole.scatter_(1, columns.index, received)
        scores = received[self.placeholders]
        if self.method.strict:
            check_finite(attention=scores[None])
        self.scores = scores

    def _cut(self, turn: int, hidden: Tensor) -> Tensor:
        visual = torch.zeros_like(self.scores, dtype=torch.bool)
        for group in self.groups:
            group.cut(turn, self.scores)
            visual[group.positions.gather(1, group.kept)] = True
        keep = self.real.clone()
        keep[self.placeholders] = visual
        return self._shorten(KeptColumns.of(keep, pad_left=self.pad_left), hidden)

    def _shorten(self, columns: KeptColumns, hidden: Tensor) -> Tensor:
        slots = columns.index
        if self.columns is not None:
            slots = self.columns.places.gather(1, slots)
        self.columns = columns
        self._fitted.clear()
        rows = torch.arange(len(slots), device=hidden.device)[:, None]
        return hidden[rows, slots.to(hidden.device)]

    def _fit(self, number: int, layer: Any, given: dict[str, Any]) -> dict[str, Any]:
        columns = self.columns
        if columns is None:
            return given
        rotary = self._once(
            given["position_embeddings"],
            lambda pair: tuple(columns.take_embeddings(part) for part in pair),
        )
        flash = "flash" in attention_implementation(layer.self_attn)
        if flash:
            check_flash_window(window_of(number, layer), self.past + self.real.shape[1])
        mask = self._once(given.get("attention_mask"), lambda mask: self._mask(mask, flash))
        # Layers look at positions only to find packed sequences, which gaps would pass for.
        return given | {
            "position_embeddings": rotary,
            "attention_mask": mask,
            "position_ids": None,
        }

    def forget_arguments(self) -> None:
        """Once all layers have run; who holds this for the backward must not hold those."""
        self._fitted.clear()

    def _once(self, value: Any, fit: Any) -> Any:
        """Layers share their arguments: what was made of one is kept until columns change."""
        if id(value) not in self._fitted:
            self._fitted[id(value)] = value, fit(value)
        return self._fitted[id(value)][1]

    def _mask(self, mask: Any, flash: bool) -> Tensor | None:
        columns, length = self.columns, self.real.shape[1]
        assert columns is not None  # `_fit` has looked
        if mask is None and not (flash and columns.padded):
            return columns.take_mask(None, self.past)
        if mask is None:
            mask = self.real.new_ones(len(self.real), self.past + length)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            now = columns.take(mask[:, -length:], False)
            return torch.cat([mask[:, :-length].expand(len(now), -1), now], dim=1)
        if isinstance(mask, Tensor) and mask.ndim == 4:
            # A sliding layer's mask knows no more of the past than its cache holds.
            return columns.take_mask(mask, mask.shape[3] - length)
        raise refused(f"masks of type {type(mask).__name__}")


@dataclass(frozen=True)
class CutCache:
    """Which columns of a prompt each layer's cache holds; lies on the cache itself.

    Attributes:
        length: columns of the whole prompt, and of what was cached before it.
        columns: for each layer [B, C] int64, or None for all.
        real: for each layer [B, C] bool, False where its cache holds padding.
    """

    length: int
    columns: list[Tensor | None]
    real: list[Tensor | None]

    @staticmethod
    def of(cache: Any) -> CutCache | None:
        return getattr(cache, _ATTRIBUTE, None)

    @staticmethod
    def attach(cache: Any, prompt: LayerReduction) -> None:
        past = prompt.past
        batch, length = prompt.real.shape
        earlier = torch.arange(past, device=prompt.real.device).expand(batch, -1)
        made: dict[int, tuple[Tensor | None, Tensor | None]] = {id(None): (None, None)}
        for kept in prompt.by_layer:
            if id(kept) not in made and kept is not None:
                made[id(kept)] = (
                    torch.cat([earlier, past + kept.index], dim=1),
                    torch.cat([torch.ones_like(earlier, dtype=torch.bool), kept.real], dim=1),
                )
        layers = [made[id(kept)] for kept in prompt.by_layer]
        columns, real = [one for one, _ in layers], [other for _, other in layers]
        setattr(cache, _ATTRIBUTE, CutCache(past + length, columns, real))
        remember_rows(cache, batch)


class CutStep:
    """A step after such a prompt: each layer's mask, for the columns that its cache holds.

    Args:
        cache: what the layers hold of the prompt.
        attention_mask: [B, past + step] of all columns, or None.
        past: columns that the first layer holds.
        step: new columns, text alone.
        rows: [B] int64, which of the prompt's rows each one is; None for the same.

    Raises:
        NotImplementedError: a mask of another shape.
    """

    def __init__(
        self, cache: CutCache, attention_mask: Any, past: int, step: int, rows: Tensor | None
    ) -> None:
        if attention_mask is not None and not (
            isinstance(attention_mask, Tensor)
            and attention_mask.ndim == 2
            and attention_mask.shape[1] == past + step
        ):
            raise NotImplementedError(
                f"attention_mask must be [B, {past + step}] after a prompt whose visual tokens "
                "were removed in the language model"
            )
        self.cache, self.past, self.step, self.rows = cache, past, step, rows
        self.mask = None if attention_mask is None else attention_mask.bool()
        self.plain = step == 1 and (self.mask is None or bool(self.mask.all()))
        self._made: dict[tuple[int, int | None], Tensor | None] = {}

    def enter(self, number: int, layer: Any, hidden: Tensor, given: dict[str, Any]) -> Any:
        """The arguments of layer `number` with the mask that fits its cache."""
        columns, real = self.cache.columns[number], self.cache.real[number]
        if columns is None or real is None:
            return given
        window = window_of(number, layer)
        key = id(columns), window
        if key not in self._made:
            self._made[key] = self._mask(columns, real, window, layer, hidden)
        return given | {"attention_mask": self._made[key]}

    def _mask(
        self, columns: Tensor, real: Tensor, window: int | None, layer: Any, hidden: Tensor
    ) -> Tensor | None:
        device, total = hidden.device, self.past + self.step
        # A draft that was rejected is cropped off the end, and the prompt ends in text.
        held = columns.shape[1] - max(0, self.cache.length - self.past)
        columns, real = columns[:, :held].to(device), real[:, :held].to(device)
        if self.rows is not None:
            columns, real = columns[self.rows.to(device)], real[self.rows.to(device)]
        later = torch.arange(min(self.cache.length, self.past), total, device=device)
        later = later.expand(len(columns), -1)
        keys = torch.cat([columns, later], dim=1)
        real = torch.cat([real, torch.ones_like(later, dtype=torch.bool)], dim=1)
        if self.plain and bool(real.all()) and (window is None or total <= window):
            return None
        if window is not None and keys.shape[1] - self.step > window - 1:
            if not bool(real[:, held - 1].all()):
                raise NotImplementedError(
                    "a prompt padded on the right that is longer than the sliding window cannot be "
                    "continued, its last tokens have left the cache; pad on the left"
                )
            first = keys.shape[1] - self.step - (window - 1)
            keys, real = keys[:, first:], real[:, first:]
        if self.mask is not None:
            real = real & self.mask.to(device).gather(1, keys)
        implementation = attention_implementation(layer.self_attn)
        if "flash" in implementation:
            check_flash_window(window, total)
            return real
        queries = torch.arange(self.past, total, device=device)[None, :, None]
        seen = (keys[:, None] <= queries) & real[:, None]
        if window is not None:
            seen &= queries - keys[:, None] < window
        # A row that is padding throughout sees itself: none may be empty.
        seen |= keys[:, None] == queries
        seen = seen[:, None]
        if implementation == "sdpa":
            return seen
        if implementation == "eager":
            lowest = torch.finfo(hidden.dtype).min
            return torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, lowest)
        raise refused(implementation)


def window_of(number: int, layer: Any) -> int | None:
    """A layer's sliding window, as its cache and mask take it from the configuration."""
    config = layer.self_attn.config
    types = getattr(config, "layer_types", None)
    if types is not None and types[number] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def check_flash_window(window: int | None, length: int) -> None:
    if window is not None and length > window:
        raise NotImplementedError(
            f"FlashAttention counts a sliding window of {window} in the columns that remain, not "
            f"in the sequence of {length}; use attn_implementation sdpa or eager"
        )


def refused(attention: str) -> NotImplementedError:
    return NotImplementedError(
        f"attention by {attention} cannot be shortened between layers; "
        "use attn_implementation sdpa, eager or flash_attention_2"
    )


def prompt_ends(
    now: Tensor, placeholders: Tensor, labels: Tensor | None, num_logits: int
) -> Tensor:
    """[B] int64: the column of each row's last prompt token.

    Args:
        now: [B, L] bool, False where padding.
        placeholders: [B, L] bool.
        labels: [B, L]; an answer begins where labels do, after the last image.
        num_logits: what `logits_to_keep` asks for: of several last columns the first is the
            prompt's, the others are drafts.
    """
    columns = torch.arange(now.shape[1], device=now.device)
    prompt = now & (columns <= now.shape[1] - max(1, num_logits))
    if labels is not None:
        last_image = (placeholders * columns).amax(1, keepdim=True)
        answer = (labels.to(now.device) != -100) & (columns > last_image)
        prompt = prompt & (answer.cumsum(1) == 0)
    return (prompt * columns).amax(1)


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
        NotImplementedError: its weights are not here.
    """
    device = next(layer.parameters()).device
    if device.type == "meta":
        raise NotImplementedError(
            "layers whose weights are offloaded cannot be read ahead; keep them on a device"
        )
    rows = torch.arange(len(hidden), device=device)
    queries = queries.to(device)
    attention = layer.self_attn
    call = Call.of(attention.forward)
    given = call.named((), given)
    cache = call.cache(given)
    earlier = (
        cache.layers[number].keys if cache is not None and len(cache.layers) > number else None
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
    with attention_exchanged(attention, noting):
        # `forward`, not a call: hooks that collect outputs must not see this one.
        attention.forward(layer.input_layernorm(hidden.to(device)), **arguments)
    return noted[0][:, -len_now:]


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
