"""vLLM's model class of a host, which hands fewer tokens of each image to the language model.

`TokenpruneX` in this module is vLLM's class X with `PrunedModel` before it; it is made when it is
first looked up, since vLLM's classes are slow to import.
"""

from __future__ import annotations

import importlib
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tp_group
from vllm.multimodal import MULTIMODAL_REGISTRY

from tokenprune.budget import Budget
from tokenprune.hosts.images import reduce_images
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.tower import TowerValues
from tokenprune.serving.vllm.hosts import HOSTS, PREFIX, adapter_for, architecture_of, parts_of
from tokenprune.serving.vllm.options import ServingOptions
from tokenprune.serving.vllm.positions import prompt_positions, shift_columns, split_columns
from tokenprune.serving.vllm.processing import FIELD, processor_class
from tokenprune.serving.vllm.tower import ServedTower


@dataclass(frozen=True)
class Image:
    """An image that is encoded.

    Attributes:
        features: [N, D], with deepstack features behind them.
        layouts: of the image, or of each of its crops where budgets count for crops.
        tower: what was read for each of those; empty where the method needs nothing.
    """

    features: Tensor
    layouts: list[ImageLayout]
    tower: list[TowerValues]


class PrunedModel:
    """Before the model's own class: images are reduced right after they are encoded."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        base: Any = super()
        base.__init__(vllm_config=vllm_config, prefix=prefix)
        hf_config = vllm_config.model_config.hf_config
        options = ServingOptions.of(hf_config)
        assert options is not None  # else this class would not have been chosen
        host = HOSTS[architecture_of(hf_config)]
        self._method, self._adapter = options.build(), adapter_for(hf_config)
        self._host = host
        tower = operator.attrgetter(host.tower)(self)
        self._tower = ServedTower(self._adapter, self._method, tower, host.packed)
        self._width = vllm_config.model_config.get_hidden_size()
        deepstack = getattr(hf_config.vision_config, "deepstack_visual_indexes", None) or ()
        self._full_width = self._width * (1 + len(deepstack))
        self._has_grid_positions = self._adapter.positions_need_grid
        self._shift: tuple[Tensor, Tensor] | None = None  # of the step that is being prepared

    # -- features ---------------------------------------------------------------------------------

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """One entry per image, [K, D], D with deepstack features and the shifts of positions."""
        base: Any = super()
        pairs = kwargs.pop(FIELD, None)
        if pairs is None:  # videos
            return base.embed_multimodal(**kwargs)
        budgets = [
            Budget(int(num_keep) or None, float(ratio) or None)
            for num_keep, ratio in torch.as_tensor(pairs).tolist()
        ]
        if self._host.padded:
            kwargs = without_padding(kwargs, self._adapter)
        packed = self._host.packed
        spans = [int(grid.prod()) for grid in kwargs["image_grid_thw"]] if packed else ()
        with self._tower.reading(spans):
            items = list(base.embed_multimodal(**kwargs))
        return self._reduced(self._images(items, kwargs), budgets)

    def _images(self, items: Sequence[Tensor], arguments: Mapping[str, Any]) -> list[Image]:
        adapter = self._adapter
        # Crops are all of one size, which the adapter knows.
        by_crop = adapter.unit == "crop"
        sizes = [None] * len(items) if by_crop else adapter.sizes(arguments, items, None)
        parts = [
            parts_of(adapter, size, len(item)) for item, size in zip(items, sizes, strict=True)
        ]
        of_parts = [size for size, own in zip(sizes, parts, strict=True) for _ in own]
        read = iter(self._tower.values(of_parts) or ())
        return [
            Image(item, own, list(itertools.islice(read, len(own))))
            for item, own in zip(items, parts, strict=True)
        ]

    def _reduced(self, images: Sequence[Image], budgets: Sequence[Budget]) -> list[Tensor]:
        """Images of one budget go through the method together."""
        reduced: dict[int, Tensor] = {}
        for budget in dict.fromkeys(budgets):
            numbers = [number for number, one in enumerate(budgets) if one == budget]
            made = self._reduce([images[number] for number in numbers], budget)
            reduced |= dict(zip(numbers, made, strict=True))
        return [reduced[number] for number in range(len(images))]

    def _reduce(self, images: Sequence[Image], budget: Budget) -> list[Tensor]:
        whole = torch.cat([image.features for image in images])
        features, deepstack = whole[:, : self._width], whole[:, self._width :]
        layouts = [layout for image in images for layout in image.layouts]
        tower = [values for image in images for values in image.tower]
        made = reduce_images(
            self._method, budget, features, layouts, tower or None, None, self._adapter.project
        )
        changed = features.clone()
        changed[made.places()] = made.features(features).to(changed.dtype)
        columns = [changed[made.keep]]
        if deepstack.shape[1]:
            columns.append(made.applied_to(deepstack).to(changed.dtype))
        if self._has_grid_positions:
            kept = made.keep.split([layout.num_tokens for layout in layouts])
            shifts = [
                shift_columns(own.nonzero()[:, 0], layout, changed.dtype)
                for own, layout in zip(kept, layouts, strict=True)
            ]
            columns.append(torch.cat(shifts))
        counts = iter(made.tokens_after)
        lengths = [sum(itertools.islice(counts, len(image.layouts))) for image in images]
        # All ranks of a tensor-parallel group go on with the choice of the first.
        rows = get_tp_group().broadcast(torch.cat(columns, dim=1))
        return list(rows.split(lengths))

    # -- positions, where they have several axes --------------------------------------------------

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Any = None
    ) -> Tensor:
        base: Any = super()
        self._shift = None
        if self._has_grid_positions and multimodal_embeddings:
            multimodal_embeddings, shifts = split_columns(multimodal_embeddings, self._full_width)
            columns = is_multimodal.nonzero()[:, 0].to(shifts.device)
            self._shift = columns, shifts
        return base.embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def forward(
        self,
        input_ids: Any,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
        **kwargs: Any,
    ) -> Any:
        if self._shift is not None:
            (columns, shifts), self._shift = self._shift, None
            # In place: vLLM fills this buffer anew in each step; CUDA graphs know its address.
            positions[:, columns] += shifts.to(positions)
        base: Any = super()
        return base.forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        base: Any = super()

        def num_whole(feature: Any) -> int:
            if feature.modality != "image":
                return feature.mm_position.length
            grid = tuple(feature.data["image_grid_thw"].data.tolist())
            return self._adapter.layout(grid).num_tokens

        return prompt_positions(
            input_tokens, mm_features, num_whole, base.get_mrope_input_positions
        )


def without_padding(arguments: Mapping[str, Any], adapter: Any) -> dict[str, Any]:
    """Each image with its own crops alone: the tower, and who reads it, see no others."""
    sizes = adapter.sizes(arguments, None, None)
    crops = [
        image[: adapter.num_crops(size)]
        for image, size in zip(arguments["pixel_values"], sizes, strict=True)
    ]
    return {**arguments, "pixel_values": crops}


def make_class(architecture: str) -> type:
    """vLLM's class with our mixin, and its processor with ours."""
    host = HOSTS[architecture]
    module = importlib.import_module(f"vllm.model_executor.models.{host.module}")
    own: Any = getattr(module, host.name or architecture)
    made = own._processor_factory
    name = PREFIX + architecture

    def processor(info: Any, dummy_inputs: Any) -> Any:
        # The host's own factory may choose among several classes.
        chosen: Any = type(made.processor(info, dummy_inputs))
        return processor_class(chosen)(info, dummy_inputs)

    pruned = type(name, (PrunedModel, own), {"__module__": __name__})
    registered = MULTIMODAL_REGISTRY.register_processor(
        processor, info=made.info, dummy_inputs=made.dummy_inputs
    )
    return registered(pruned)


def __getattr__(name: str) -> Any:
    architecture = name.removeprefix(PREFIX)
    if architecture == name or architecture not in HOSTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, make_class(architecture))
