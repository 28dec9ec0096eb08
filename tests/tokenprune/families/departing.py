"""A family that keeps none of the conventions, and the adapter that another package has for it."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModelOutputWithPast

import tokenprune

from ..hosts import CACHE, IMAGE, TEXT, TOWER, Host
from .common import alive, sized


class DepartingConfig(hf.LlavaConfig):
    model_type = "departing"


class DepartingModel(hf.LlavaModel):
    """Features of all images come in one row, a token after each line; `writer` writes."""

    config_class = DepartingConfig
    get_placeholder_mask = None

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.writer = self.language_model
        del self.language_model
        self.patches = nn.Conv2d(3, config.text_config.hidden_size, 14, 14)
        self.line_end = nn.Parameter(torch.randn(config.text_config.hidden_size))

    def get_input_embeddings(self) -> nn.Module:
        return self.writer.embed_tokens

    def get_image_features(self, pixel_values: Any, image_sizes: Any, **kwargs: Any) -> Any:
        lines: list[torch.Tensor] = []
        for image, (height, width) in zip(pixel_values, image_sizes.tolist(), strict=True):
            for line in self.patches(image[:, :height, :width]).permute(1, 2, 0):
                lines += [line, self.line_end[None]]
        return BaseModelOutputWithPooling(pooler_output=torch.cat(lines))

    @functools.wraps(hf.LlavaModel.forward)
    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **given: Any) -> Any:
        pixels, sizes = given.pop("pixel_values", None), given.pop("image_sizes", None)
        encoded = (given.pop("mm_encoder_outputs", None) or {}).get("image")
        if encoded is None and pixels is not None:
            encoded = self.get_image_features(pixels, sizes)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if encoded is not None:
            places = (input_ids == IMAGE)[:, :, None]
            inputs_embeds = inputs_embeds.masked_scatter(places, encoded.pooler_output)
        known = ("attention_mask", "position_ids", "use_cache", CACHE)
        passed = {name: given.get(name) for name in known}
        return LlavaModelOutputWithPast(**self.writer(inputs_embeds=inputs_embeds, **passed))


class Departing(tokenprune.Adapter):
    """The whole of what another package writes for it."""

    model_types = ("departing",)

    @property
    def language_model(self) -> nn.Module:
        return self.model.writer

    def per_image(self, features: Any, arguments: Any) -> Any:
        sizes = self.sizes(arguments, features, None)
        return features.split([self.layout(size).num_tokens for size in sizes])

    def sizes(self, arguments: Any, features: Any, input_ids: Any) -> Any:
        return [tuple(size) for size in arguments["image_sizes"].tolist()]

    def layout(self, size: Any) -> tokenprune.ImageLayout:
        rows, cols = (side // 14 for side in size)
        grid = tokenprune.TokenGrid(start=0, rows=rows, cols=cols, stride=cols + 1)
        return tokenprune.ImageLayout(rows * (cols + 1), (grid,))


class Sized(Host):
    """Features do not say how many tokens each image has."""

    def lengths(self, images: dict[str, Any]) -> list[int]:
        sizes = images["image_sizes"].tolist()
        return [height // 14 * (width // 14 + 1) for height, width in sizes]


def departing() -> Host:
    window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    config = DepartingConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=hf.Qwen2Config(**TEXT, **window),
        image_token_id=IMAGE,
    )
    model = hf.LlavaForConditionalGeneration(config)
    model.model = DepartingModel(config)
    return Sized(alive(model), sized(14), lambda inputs: inputs["image_sizes"].tolist())
