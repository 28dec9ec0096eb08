"""The model in vLLM: our own vision side, and vLLM's Qwen2."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from geollava.model.configuration import GeoLlavaConfig
from geollava.model.processing import IMAGE_TOKEN
from geollava.model.projector import build_projector
from geollava.model.token_reduction import AffinityHead
from geollava.model.vision import VisualEncoding
from geollava.model.vision_tower import VisionTower
from geollava.serving.processing import DummyInputs, ProcessingInfo, Processor


class VisionSide(VisualEncoding, nn.Module):
    """Crops -> features for the language model: the code that the model in transformers runs.

    Every rank of a tensor-parallel group has it whole.
    """

    def __init__(self, config: GeoLlavaConfig) -> None:
        super().__init__()
        # Tokens that are not finite must not end the engine, which serves others, too.
        self.config = copy.deepcopy(config)
        self.config.strict = False
        self.model = nn.Module()
        self.model.gradient_checkpointing = False
        self.model.vision_tower = VisionTower(config.vision_config, config.vision_feature_layer)
        self.model.mm_projector = build_projector(
            config.vision_config.hidden_size, config.text_config.hidden_size
        )
        self.reghead = AffinityHead(config.vision_config.hidden_size)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.reghead.pw.weight.device


@MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputs)
class ServedGeoLlava(nn.Module, SupportsMultiModal):
    """GeoLLaVA-8K. Crops pass the tower a chunk at a time, whatever vLLM's own batches are."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.vision_tower.": "vision.model.vision_tower.",
            "model.mm_projector.": "vision.model.mm_projector.",
            "reghead.": "vision.reghead.",
            "model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
        }
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality != "image":
            raise ValueError(f"GeoLLaVA must be asked about images, got {modality}")
        return IMAGE_TOKEN

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        own: Any = self
        own.configure_mm_token_handling(
            vocab_size=config.text_config.vocab_size, mm_token_ids=[config.image_token_id]
        )
        with own._mark_tower_model(vllm_config, "image"):
            self.vision = VisionSide(config).to(vllm_config.model_config.dtype)
        with own._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                architectures=["Qwen2ForCausalLM"],
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """For each image [crops * num_keep, text width]."""
        num_crops = kwargs["num_crops"]
        features = self.vision.get_image_features(kwargs["pixel_values"], num_crops)
        lengths = [int(crops) * self.config.num_keep for crops in num_crops]
        return list(features.split(lengths))

    def forward(
        self,
        input_ids: Any,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
        **kwargs: Any,
    ) -> Any:
        return self.language_model.model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )

    def compute_logits(self, hidden_states: Tensor) -> Any:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded: set[str] = AutoWeightsLoader(self).load_weights(
            weights, mapper=self.hf_to_vllm_mapper
        )
        return loaded
