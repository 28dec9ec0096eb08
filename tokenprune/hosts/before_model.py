"""Reduction before the language model: it runs on a shorter prompt."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from tokenprune.hosts.applied import Outcome, cache_bytes_saved
from tokenprune.hosts.column_arguments import BY_COLUMN, refuse_unknown, taken
from tokenprune.hosts.compat import attention_implementation, prepared_masks
from tokenprune.hosts.images import reduce_images
from tokenprune.hosts.layer_fit import fit_in_layers
from tokenprune.hosts.masks import bounds_beside_gaps, fit_prompt_mask, moved, positions_of
from tokenprune.hosts.memory import Memory, Origin, remember
from tokenprune.hosts.recurrent import KINDS, fit_recurrent_mask, refuse_padding_between
from tokenprune.hosts.reduced import ReducedImages
from tokenprune.hosts.reduction import Reduction
from tokenprune.hosts.sequence import KeptColumns, compacted, edge_padding
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.hosts.windows import window_of_kind


class BeforeModel(Reduction):
    """Columns of dropped tokens leave embeddings, positions and masks alike."""

    columns: KeptColumns | None = None
    shift: Tensor | None = None
    images: ReducedImages
    stopwatch: Stopwatch

    def begin(self, given: dict[str, Any]) -> dict[str, Any]:
        prompt, method = self.prompt, self.applied.method
        known = self.adapter.known(given)
        refuse_unknown(known, type(self.adapter.language_model).__name__, BY_COLUMN)
        embeddings = known["inputs_embeds"]
        memory = Memory.of(prompt.cache)
        if memory is not None and not memory.uniform:
            raise NotImplementedError(
                "new images after a prompt whose visual tokens were removed in the language model "
                f"are not supported with {type(method).__name__}; go on with the method that began"
            )
        if method.over_time and not any(layout.is_video for layout in prompt.layouts):
            raise NotImplementedError(
                f"{type(method).__name__} compares the frames of videos, the prompt has none"
            )
        with Stopwatch(embeddings.device) as self.stopwatch:
            self.images = reduce_images(
                method,
                self.applied.budget,
                embeddings[prompt.placeholders],
                prompt.layouts,
                prompt.tower,
                prompt.texts(embeddings) if "text" in method.needs else None,
                self.adapter.project,
            )
            if memory is None and bool(self.images.keep.all()):
                return given
            padding, pad_left = edge_padding(prompt.now)
            keep = ~padding
            keep[prompt.placeholders] &= self.images.keep
            self.columns = KeptColumns.of(keep, pad_left=pad_left)
            refuse_padding_between(self.adapter.language_model, prompt, self.columns)
            return self.adapter.own(self.shortened(known, self.columns))

    def shortened(self, given: dict[str, Any], columns: KeptColumns) -> dict[str, Any]:
        embeddings = given["inputs_embeds"]
        changed = {
            "inputs_embeds": self.embeddings(embeddings, columns),
            "position_ids": self.positions(given, columns),
            "attention_mask": self.masks(given, columns),
        }
        if given.get("visual_pos_masks") is not None:
            changed["visual_pos_masks"] = columns.take(given["visual_pos_masks"], False)
        if given.get("deepstack_visual_embeds") is not None:
            changed["deepstack_visual_embeds"] = [
                self.images.applied_to(layer) for layer in given["deepstack_visual_embeds"]
            ]
        attention = attention_implementation(self.adapter.language_model)
        bounds = bounds_beside_gaps(self.prompt, columns, attention)
        return given | changed | taken(given, columns) | bounds

    def embeddings(self, embeddings: Tensor, columns: KeptColumns) -> Tensor:
        """[B, L, D] -> [B, L', D], with the features that the method made."""
        placeholders, images = self.prompt.placeholders, self.images
        made = torch.zeros_like(placeholders)
        rows, cols = placeholders.nonzero(as_tuple=True)
        places = images.places()
        made[rows[places], cols[places]] = True
        features = images.features(embeddings[placeholders])
        short = columns.take_embeddings(embeddings)
        return short.masked_scatter(columns.take(made, False)[:, :, None], features.to(short))

    def positions(self, given: dict[str, Any], columns: KeptColumns) -> Tensor:
        """[.., B, L']; notes how far what follows has moved."""
        now, past = self.prompt.now, self.prompt.past
        positions = positions_of(given, past)
        positions = positions.expand(*positions.shape[:-2], len(now), -1)
        memory = Memory.of(self.prompt.cache)
        if memory is not None:
            positions = moved(positions, memory)
            self.shift = memory.shift_of_rows()
        if self.applied.positions == "compact":
            positions, shift = compacted(positions, columns.keep, now)
            self.shift = shift if self.shift is None else shift + self.shift.to(shift.device)
        return columns.take(positions)

    def masks(self, given: dict[str, Any], columns: KeptColumns) -> Any:
        """`given`: what the host made of the mask: [B, M], [B, H, L, M], or one per layer type."""
        prompt, mask = self.prompt, given.get("attention_mask")
        language_model: Any = self.adapter.language_model
        config = language_model.config.get_text_config()
        total = prompt.past + prompt.now.shape[1]
        window = getattr(config, "sliding_window", None)
        simple = Memory.of(prompt.cache) is None and (window is None or total <= window)
        ready = isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.ndim == 4)
        if simple and not ready:
            # Always a mask: without one, positions with gaps are taken for packed sequences.
            earlier = prompt.now.new_ones(len(prompt.now), prompt.past)
            if prompt.mask is not None:
                earlier = prompt.mask[:, : prompt.past].to(prompt.now)
            both = torch.cat([earlier, columns.take(prompt.now, False)], dim=1)
            return both.to(mask.dtype if isinstance(mask, Tensor) else torch.int64)
        masks = (
            mask if ready else prepared_masks(config, given["inputs_embeds"], mask, prompt.cache)
        )

        def fit(one: Any, kind: str | None) -> Tensor | None:
            if kind in KINDS:
                return fit_recurrent_mask(one, prompt, columns)
            window = window_of_kind(config, kind)
            attention = attention_implementation(self.adapter.language_model)
            return fit_prompt_mask(one, Memory.of(prompt.cache), prompt, columns, window, attention)

        if not isinstance(masks, dict):
            return fit(masks, None)
        taken = {kind: fit(one, kind) for kind, one in masks.items()}
        if not ready and len(taken) == 1:  # not every model takes masks by kind
            return next(iter(taken.values()))
        return taken

    def end(self, cache: Any) -> Outcome:
        columns, prompt = self.columns, self.prompt
        kept = ~edge_padding(prompt.now)[0] if columns is None else columns.keep
        outcome = Outcome(
            self.images,
            columns,
            [row.nonzero()[:, 0] + prompt.past for row in kept],
            (),
            [self.stopwatch, *prompt.stopwatches],
            prompt.stopwatches,
        )
        if columns is not None and cache is not None:
            layers, length = len(cache.layers), prompt.now.shape[1]
            origin = Origin(weakref.ref(self.adapter.language_model), fit_in_layers)
            remember(cache, [columns] * layers, length, prompt.past, [self.shift] * layers, origin)
            removed = length - columns.index.shape[1]
            outcome.cache_bytes_saved = cache_bytes_saved(cache, [removed] * layers)
        return outcome
