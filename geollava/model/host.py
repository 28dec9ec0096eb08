"""GeoLLaVA as a host of tokenprune: every method on the visual tokens that its crops keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from geollava.model.configuration import NO_REDUCTION
from geollava.model.sharding import is_sharded
from tokenprune import Adapter, ImageLayout, TokenGrid


class GeoLlava(Adapter):
    """GeoLLaVA-8K, this project's own.

    A budget counts for an image: `num_crops` crops of `config.num_keep` tokens each.

    Methods before the language model share it out evenly to the crops, those between its layers
    look at the image as a whole. With `reduction_method` "none" a crop's tokens are the grid of its
    patches. After another reduction they are no grid, and most are means of clusters: methods that
    look at neighbors or at the tower's attention are refused.
    """

    model_types: ClassVar[tuple[str, ...]] = ("geollava",)

    @classmethod
    def host_of(cls, model: nn.Module) -> nn.Module:
        return model  # the head is part of it: without it there is only a language model

    def check(self) -> None:
        super().check()
        if is_sharded(self.model):
            raise NotImplementedError(
                "GeoLLaVA's visual tokens cannot be reduced once more while its weights are "
                "sharded; apply to a model that is whole"
            )

    @property
    def offers(self) -> frozenset[str]:
        whole = self.config.reduction_method == NO_REDUCTION
        # The tower ends before the last layer, whose logits are asked for.
        return super().offers - {"cls_logits"} if whole else frozenset({"features", "text"})

    @property
    def knows_crops(self) -> bool:
        return False  # methods by crop go by a thumbnail, and there is none

    def why_not(self, method: Any) -> str | None:
        config = self.config
        if config.reduction_method == NO_REDUCTION:
            return self._why_not_layers(method)
        left = (
            f"of which {config.reduction_method} leaves {config.num_keep} of "
            f"{config.tokens_per_crop}; reduction_method {NO_REDUCTION!r} keeps them all"
        )
        if method.uses_grid:
            return f"looks at neighbors among a crop's tokens, {left}"
        of_tower = [name for name in method.needs if name not in {*self.offers, "layers"}]
        if of_tower:
            return f"needs the vision tower's {', '.join(of_tower)} of a crop's tokens, {left}"
        return None

    def _why_not_layers(self, method: Any) -> str | None:
        """The tower ends at the feature layer: -2 is after the last layer but one."""
        layers = self.vision_tower.encoder.encoder.layers
        run = len(layers) + 1 + self.vision_tower.feature_layer
        for name, wanted in method.tower_layers.items():
            if beyond := [layer for layer in wanted if layer % len(layers) >= run]:
                return (
                    f"needs {name} of layer {beyond[0]}, the vision tower runs {run} of its "
                    f"{len(layers)} layers"
                )
        return None

    @property
    def language_model(self) -> nn.Module:
        return self.model.model

    @property
    def vision_tower(self) -> Any:
        return self.model.model.vision_tower

    def encoded_before(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        features = arguments.get("image_features")
        if features is None:
            features = arguments.get("vision_features")
        return {"image": features, "video": arguments.get("video_features")}

    def per_image(self, features: Any, arguments: Mapping[str, Any]) -> Sequence[Tensor]:
        """[C * K, D], or [C, K, D] as the tower gave them, -> for each image its [tokens, D]."""
        num_crops = arguments.get("num_crops")
        if num_crops is None:
            raise ValueError(
                "num_crops must say how many crops each image has while visual tokens are removed"
            )
        tokens = features.reshape(-1, features.shape[-1])
        counts = [int(crops) * self.config.num_keep for crops in num_crops]
        if sum(counts) != len(tokens):
            raise ValueError(
                f"num_crops must add up to {len(tokens)} tokens, {self.config.num_keep} of each "
                f"crop, got {torch.as_tensor(num_crops).tolist()}"
            )
        return tokens.split(counts)

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        return [(length // self.config.num_keep,) for length in self.lengths(features)]

    def layout(self, size: Any) -> ImageLayout:
        """`size`: (crops,) of the image."""
        (crops,), num_keep = size, self.config.num_keep
        whole = self.config.reduction_method == NO_REDUCTION
        rows, cols = self.config.grid_size if whole else (1, num_keep)
        grids = (TokenGrid(crop * num_keep, rows, cols, cols) for crop in range(crops))
        return ImageLayout(crops * num_keep, tuple(grids))

    def token_values(self, values: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        per_crop = self.config.tokens_per_crop
        return list(values.flatten(0, 1).split([crops * per_crop for (crops,) in sizes]))
