"""vLLM's processor of a host, which writes fewer placeholders."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems
from vllm.multimodal.processing.processor import PromptReplacement, PromptUpdateDetails

from tokenprune.budget import Budget
from tokenprune.hosts.adapter import Adapter
from tokenprune.serving.vllm.hosts import adapter_for
from tokenprune.serving.vllm.options import KEY, ServingOptions

FIELD = "tokenprune_budget"  # beside each image's pixels: [num_keep, keep_ratio], 0 for None


class PrunedProcessor:
    """Before the processor's own class: an image has as many placeholders as tokens remain of it.

    That number is known from the image's size alone. The budget goes to the model beside the
    pixels, and is part of what an image is known by in vLLM's caches.
    """

    info: Any

    @functools.cached_property
    def _options(self) -> ServingOptions:
        options = ServingOptions.of(self.info.ctx.model_config.hf_config)
        assert options is not None  # else this class would not have been chosen
        return options

    @functools.cached_property
    def _adapter(self) -> Adapter:
        return adapter_for(self.info.ctx.model_config.hf_config)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        budget = self._options.budget_of(hf_kwargs)
        images = mm_items.get("image")
        if isinstance(images, (EmbeddingItems, DictEmbeddingItems)):
            raise ValueError("tokenprune must be given images, got features that are encoded")
        base: Any = super()
        data = base._apply_hf_processor_main(mm_items, without_ours(hf_kwargs))
        if images is not None and len(images):
            pair = [budget.num_keep or 0, budget.keep_ratio or 0]
            data[FIELD] = torch.tensor([pair] * len(images), dtype=torch.float64)
        return data

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        base: Any = super()
        fields = base._get_mm_fields_config(hf_inputs, without_ours(hf_processor_mm_kwargs))
        return {**fields, FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        budget = self._options.budget_of(hf_processor_mm_kwargs)
        base: Any = super()
        updates = base._get_prompt_updates(
            mm_items, without_ours(hf_processor_mm_kwargs), out_mm_kwargs
        )
        return [
            self._shortened(update, budget) if update.modality == "image" else update
            for update in updates
        ]

    def _shortened(self, update: Any, budget: Budget) -> Any:
        """The update that writes an image's placeholders, with fewer of them."""
        name = "replacement" if isinstance(update, PromptReplacement) else "insertion"

        def short(number: int) -> PromptUpdateDetails:
            content = update.content
            details = content(number) if callable(content) else content
            if not isinstance(details, PromptUpdateDetails):
                details = PromptUpdateDetails.from_seq(details)
            tokens = list(details.full)
            stands = [True] * len(tokens) if details.is_embed is None else details.is_embed(tokens)
            columns = [column for column, is_visual in enumerate(stands) if is_visual]
            gone = set(dropped(columns, budget, self._adapter))
            kept = [token for column, token in enumerate(tokens) if column not in gone]
            return dataclasses.replace(details, full=kept)

        return dataclasses.replace(update, **{name: short})

    def _get_mm_hashes(self, inputs: Any) -> Any:
        given = inputs.hf_processor_mm_kwargs
        identity = self._options.identity(self._options.budget_of(given))
        base: Any = super()
        return base._get_mm_hashes(
            dataclasses.replace(inputs, hf_processor_mm_kwargs={**given, KEY: identity})
        )


def without_ours(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != KEY}


def dropped(columns: Sequence[int], budget: Budget, adapter: Adapter) -> list[int]:
    """Those of an image's columns that leave. They look alike: the last of each part go."""
    total = len(columns)
    size = adapter.layout(None).num_tokens if adapter.unit == "crop" else total
    kept = budget.kept_of(size) if size else 0
    return [column for number, column in enumerate(columns) if number % size >= kept]


@functools.cache
def processor_class(own: type) -> type:
    """Our mixin before a processor class of vLLM's."""
    return type(f"Pruned{own.__name__}", (PrunedProcessor, own), {})
