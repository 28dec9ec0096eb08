"""Reduction between the layers of the language model: later layers see, and cache, fewer columns.

The first layer holds the whole prompt. What reaches a later layer is cut to that layer's columns
here: states, rotary embeddings and mask alike.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.applied import Applied, Outcome, cache_bytes_saved
from tokenprune.hosts.column_arguments import refuse_unknown
from tokenprune.hosts.image_groups import ImageGroup, group_images, reduced_images
from tokenprune.hosts.layer_arguments import LayerArguments
from tokenprune.hosts.layer_checks import check_in_layer, check_prompt, ranking_layer
from tokenprune.hosts.layer_fit import fit_in_layers
from tokenprune.hosts.layer_reading import (
    Alike,
    Raters,
    Reading,
    find_raters,
    read_layer,
)
from tokenprune.hosts.masks import positions_of
from tokenprune.hosts.memory import Memory, Origin, remember
from tokenprune.hosts.prompt import Prompt
from tokenprune.hosts.reduction import Reduction
from tokenprune.hosts.sequence import KeptColumns, edge_padding
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.layer_tokens import LayerTokens
from tokenprune.method import Cut
from tokenprune.ops.common.checks import check_finite
from tokenprune.tokens import ReducedTokens


class BetweenLayers(Reduction):
    """Tokens leave before some layers, as the method says; what is left goes on.

    Attributes:
        columns: what is left in the current layer; None for all.
        by_layer: the same for each layer that has begun.
        shifts: for each layer, how far the positions of what follows have moved.
    """

    in_layers: ClassVar[bool] = True

    def __init__(self, applied: Applied, adapter: Adapter, prompt: Prompt) -> None:
        super().__init__(applied, adapter, prompt)
        self.method = applied.method
        self.num_layers = len(adapter.decoder_layers)
        self.cuts: list[Cut] = self.method.cuts(self.num_layers)
        device = prompt.placeholders.device
        self.groups = group_images(
            prompt.layouts, self.method, applied.budget, len(self.cuts), device
        )
        padding, self.pad_left = edge_padding(prompt.now)
        self.real = ~padding
        self.columns: KeptColumns | None = None
        self.by_layer: list[KeptColumns | None] = []
        self.shifts: list[Tensor | None] = []
        self.raters: Raters | None = None
        self.readings: dict[int, Reading] = {}
        self.stopwatches: list[Stopwatch] = []
        self.features: Tensor | None = None
        self._deepstack: tuple[Tensor, Sequence[Tensor]] | None = None
        self.arguments = LayerArguments(prompt, adapter, applied.positions == "compact")
        self.cuts = [
            Cut(cut.before, ranking_layer(self.method, adapter, prompt, cut.ranked_in))
            if self._shrinks(turn) and "attention" in self.method.reads
            else cut
            for turn, cut in enumerate(self.cuts)
        ]

    def begin(self, given: dict[str, Any]) -> dict[str, Any]:
        """The whole prompt goes in.

        Raises:
            NotImplementedError: image features that the host adds after the last layer, arguments
                that are not known, or a prompt that the method does not take.
        """
        refuse_unknown(given, type(self.adapter.language_model).__name__, set())
        self.features = given["inputs_embeds"][self.prompt.placeholders]
        self.arguments.positions = positions_of(given, self.prompt.past)
        reduces = any(self._shrinks(turn) for turn in range(len(self.cuts)))
        first = [places for group in self.groups for places in group.positions[:, 0].tolist()]
        check_prompt(self.method, self.adapter, self.prompt, first, reduces)
        if not reduces:
            return given
        features = given.get("deepstack_visual_embeds")
        if not features:
            return given
        if len(features) >= self.num_layers:
            raise NotImplementedError(
                f"{type(self.method).__name__} cannot follow image features that are added after "
                "the last layer"
            )
        # Added here, layer by layer, where it is known which columns are left.
        self._deepstack = given["visual_pos_masks"], features
        return given | {"visual_pos_masks": None, "deepstack_visual_embeds": None}

    def enter_layer(
        self, number: int, layer: nn.Module, states: Tensor, given: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        states = self._add_deepstack(number, states)
        with Stopwatch(states.device) as stopwatch:
            if self.raters is None:
                self.raters = find_raters(self.method, self.groups, self.prompt, self.real, states)
            for turn, cut in enumerate(self.cuts):
                if cut.ranked_in == number and self._shrinks(turn):
                    fitted = self.arguments.fit(number, layer, states, given, self.columns)
                    self.readings[turn] = read_layer(
                        self.method, number, layer, states, fitted, self.columns, self.raters
                    )
                if cut.before == number and self._shrinks(turn):
                    states = self._cut(turn, states)
            given = self.arguments.fit(number, layer, states, given, self.columns)
        self.stopwatches.append(stopwatch)
        self.by_layer.append(self.columns)
        self.shifts.append(self.arguments.shift(number, self.columns))
        return states, given

    def enter_layer_again(
        self, number: int, layer: nn.Module, states: Tensor, given: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        columns, again = self.by_layer[number], copy.copy(self)
        again.columns = self.by_layer[number - 1] if number else None
        states = again._add_deepstack(number, states)
        if columns is not None and columns is not again.columns:
            states = again._shorten(columns, states)
        given = self.arguments.fit(number, layer, states, given, columns)
        self.forget()
        return states, given

    def forget(self) -> None:
        """Who holds this for the backward must not hold the arguments of its layers."""
        self.arguments.forget()
        self.readings.clear()

    def end(self, cache: Any) -> Outcome | None:
        self.forget()
        if len(self.by_layer) < self.num_layers:
            return None
        assert self.features is not None  # `begin` has set it
        prompt = self.prompt
        kept = self.real if self.columns is None else self.columns.keep
        outcome = Outcome(
            reduced_images(self.groups, prompt.layouts, self.features),
            self.columns,
            [row.nonzero()[:, 0] + prompt.past for row in kept],
            [None if columns is None else columns.keep for columns in self.by_layer],
            self.stopwatches,
        )
        remembered = Memory.of(prompt.cache) is not None
        if cache is not None and (self.columns is not None or remembered):
            length = self.real.shape[1]
            origin = Origin(weakref.ref(self.adapter.language_model), fit_in_layers)
            remember(cache, self.by_layer, length, prompt.past, self.shifts, origin)
            removed = [length - kept.index.shape[1] if kept else 0 for kept in self.by_layer]
            outcome.cache_bytes_saved = cache_bytes_saved(cache, removed)
        return outcome

    def _shrinks(self, turn: int) -> bool:
        return any(group.shrinks(turn) for group in self.groups)

    def _add_deepstack(self, number: int, states: Tensor) -> Tensor:
        if self._deepstack is None or not 1 <= number <= len(self._deepstack[1]):
            return states
        mask, features = self._deepstack[0], self._deepstack[1][number - 1].to(states)
        if self.columns is not None:
            features = features[self.columns.keep[mask]]
            mask = self.columns.take(mask, False)
        mask = mask.to(states.device)
        states = states.clone()
        states[mask] = states[mask] + features
        return states

    def _cut(self, turn: int, states: Tensor) -> Tensor:
        reading, columns = self.readings.pop(turn), self.columns
        left = self.real if columns is None else columns.keep
        made: list[tuple[ImageGroup, Alike, ReducedTokens]] = []
        for group in self.groups:
            if not group.shrinks(turn):
                continue
            results = []
            for alike in Alike.within(group, self.method, self.prompt, left, reading.raters):
                with self._choosing():
                    tokens = alike.tokens(self.method, self.adapter, states, columns, reading)
                    result = self._reduce(tokens, group.counts[turn])
                results.append((alike.members, result))
                made.append((group, alike, result))
            group.cut(results, self.method.merges)
        placeholders = self.prompt.placeholders
        visual = torch.zeros_like(placeholders[placeholders])
        for group in self.groups:
            visual[group.standing] = True
        keep = self.real.clone()
        keep[placeholders] = visual
        bias = self._bias(made) if self.method.proportional else None
        states = self._shorten(KeptColumns.of(keep, pad_left=self.pad_left, bias=bias), states)
        if self.method.merges:
            for group, alike, result in made:
                states = self._placed(states, group, alike, result)
        return states

    def _choosing(self) -> Any:
        """No gradient passes where tokens are only chosen."""
        # A checkpointed layer does not choose again, and must save as many tensors as before.
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.method.merges)

    def _reduce(self, tokens: LayerTokens, num_keep: int) -> ReducedTokens:
        if self.method.strict:
            check_finite(**tokens.tensors())
        with torch.autocast(self.real.device.type, enabled=False):
            result = self.method.reduce_in_layer(tokens, num_keep)
        return check_in_layer(self.method, result, tokens, num_keep)

    def _bias(self, made: Sequence[tuple[ImageGroup, Alike, ReducedTokens]]) -> Tensor:
        """[B, L] logarithms of how many tokens each column stands for."""
        bias = torch.zeros(self.real.shape, device=self.real.device)
        columns = self.prompt.placeholders.nonzero()[:, 1]
        for group, alike, result in made:
            sizes = result.counts.to(bias).log()
            bias[alike.rows[:, None], columns[group.standing[:, : sizes.shape[1]]]] = sizes
        return bias

    def _placed(
        self, states: Tensor, group: ImageGroup, alike: Alike, result: ReducedTokens
    ) -> Tensor:
        """[B, C, D] states with the rows that a method has made of one image."""
        assert self.columns is not None  # tokens have just left
        columns = self.prompt.placeholders.nonzero()[:, 1][group.standing]
        slots = self.columns.places[alike.rows[:, None], columns].to(states.device)
        states = states.clone()
        states[alike.rows.to(states.device)[:, None], slots] = result.rows.to(states)
        return states

    def _shorten(self, columns: KeptColumns, states: Tensor) -> Tensor:
        slots = columns.index
        if self.columns is not None:
            slots = self.columns.places.gather(1, slots)
        self.columns = columns
        rows = torch.arange(len(slots), device=states.device)[:, None]
        return states[rows, slots.to(states.device)]
