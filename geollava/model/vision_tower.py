"""Crops -> vision tokens: transformers' CLIP, and of its layers only those that are needed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel


class CropEncoder(CLIPVisionModel):
    """CLIP up to a hidden state, with no layer beyond it and no hidden state kept on the way."""

    def forward(self, pixel_values: Tensor, feature_layer: int) -> Tensor:
        """[B, 3, h, w] normalized crops -> [B, 1 + N, D], the class token first.

        Args:
            feature_layer: negative index into CLIP's hidden states, of which there is one more than
                layers: -1 is after the last layer, -2 after the last but one.
        """
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values))
        num_layers = len(self.encoder.layers) + 1 + feature_layer
        for layer in self.encoder.layers[:num_layers]:
            hidden_states = layer(hidden_states, attention_mask=None)
        return hidden_states


class VisionTower(nn.Module):
    """The encoder under the name that published checkpoints give it."""

    def __init__(self, config: CLIPVisionConfig, feature_layer: int) -> None:
        super().__init__()
        self.vision_tower = nn.ModuleDict({"vision_model": CropEncoder._from_config(config)})
        self.feature_layer = feature_layer

    @property
    def encoder(self) -> CropEncoder:
        return self.vision_tower["vision_model"]  # type: ignore[return-value]

    @property
    def anchor(self) -> Any:
        """The attention whose query and value projections anchor the selection."""
        return self.encoder.encoder.layers[self.feature_layer].self_attn

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """Weights that no output depends on: layers beyond the feature layer, the last norm."""
        layers = self.encoder.encoder.layers
        beyond = layers[len(layers) + 1 + self.feature_layer :]
        return chain(beyond.parameters(), self.encoder.post_layernorm.parameters())

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, h, w] normalized crops -> [B, 1 + N, D] in the tower's dtype."""
        return self.encoder(pixel_values.to(self.encoder.dtype), self.feature_layer)
