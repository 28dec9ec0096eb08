"""What vLLM asks about a model's images: crops out of them, placeholders for them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import EmbeddingItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from geollava.model.configuration import GeoLlavaConfig
from geollava.model.processing import IMAGE_TOKEN, GeoLlavaProcessor
from geollava.model.vision import CHUNK_SIZE


class ProcessingInfo(BaseProcessingInfo):
    """Of a checkpoint."""

    def get_hf_config(self) -> GeoLlavaConfig:
        config: GeoLlavaConfig = self.ctx.get_hf_config(GeoLlavaConfig)
        return config

    def get_hf_processor(self, **kwargs: Any) -> GeoLlavaProcessor:
        """
        Raises:
            ValueError: options of a request; images are cut as the checkpoint says.
        """
        if kwargs:
            raise ValueError(f"GeoLLaVA takes no mm_processor_kwargs, got {', '.join(kwargs)}")
        return processor_of(self.ctx.model_config.model)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        config = self.get_hf_config()
        return {"image": config.max_crops * config.num_keep}


@functools.cache
def processor_of(model: str) -> GeoLlavaProcessor:
    """Of a folder or hub name."""
    processor: GeoLlavaProcessor = GeoLlavaProcessor.from_pretrained(model)
    return processor


class DummyInputs(BaseDummyInputsBuilder):
    """What vLLM measures its memory with: as many crops as pass the tower at once."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE_TOKEN * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> dict[str, Any]:
        processor = self.info.get_hf_processor().image_processor
        fit = [
            (width, height)
            for width, height in processor.canvases()
            if width * height <= CHUNK_SIZE * processor.crop_size**2
        ]
        width, height = max(fit, key=lambda size: size[0] * size[1])
        images = self._get_dummy_images(
            width=width,
            height=height,
            num_images=mm_counts.get("image", 0),
            overrides=mm_options.get("image"),
        )
        return {"image": images}


class Processor(BaseMultiModalProcessor):
    """An image's placeholder -> one for each token that is kept of its crops."""

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, Any]) -> Any:
        processor = self.info.get_hf_processor(**hf_kwargs)
        return processor.image_processor(hf_data["images"])

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        if isinstance(mm_items.get("image"), EmbeddingItems):
            raise ValueError("GeoLLaVA must be given images, got features that are encoded")
        return super()._apply_hf_processor_main(mm_items, hf_kwargs)

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        num_crops = hf_inputs.get("num_crops", torch.empty(0, dtype=torch.int64))
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", num_crops),
            "num_crops": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        config = self.info.get_hf_config()
        token = config.image_token_id

        def placeholders(number: int) -> list[int]:
            crops = int(out_mm_kwargs["image"][number]["num_crops"].data)
            return [token] * (crops * config.num_keep)

        return [PromptReplacement(modality="image", target=[token], replacement=placeholders)]
