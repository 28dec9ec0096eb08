"""Pixels -> features for the language model, a chunk of crops at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpoint_activations

from geollava.imagery import normalize_crops
from geollava.model import sharding
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.projector import pool_frames
from geollava.model.token_reduction import (
    AffinityHead,
    ReducedTokens,
    reading_attention,
    reduce_tokens,
)

# Crops that pass the tower at a time, as published; more than 16 take longer on a CPU.
CHUNK_SIZE, CPU_CHUNK_SIZE = 144, 16


class VisualEncoding:
    """What the model does with images and videos before its language model reads."""

    config: GeoLlavaConfig
    model: Any
    reghead: AffinityHead
    device: torch.device
    training: bool

    def read_images(
        self,
        pixel_values: Tensor | None,
        num_crops: Any,
        vision_features: Tensor | None,
        image_features: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """(features of all images, those of blank crops), from whatever a forward is given."""
        if self.training and sharding.is_sharded(self):  # type: ignore[arg-type]
            if pixel_values is not None:
                check_num_crops(num_crops, len(pixel_values), "crops of pixel_values")
            return self.encode_in_step(pixel_values)
        if pixel_values is not None:
            return self.get_image_features(pixel_values, num_crops), None
        if vision_features is not None:
            check_num_crops(num_crops, len(vision_features), "crops of vision_features")
            return self.project(vision_features), None
        if image_features is not None:
            num_keep = self.config.num_keep
            tokens = f"tokens of image_features, {num_keep} of each crop"
            check_num_crops(num_crops, len(image_features), tokens, num_keep)
        return image_features, None

    def get_image_features(self, pixel_values: Tensor, num_crops: Any = None) -> Tensor:
        """[C, 3, h, w] crops -> [C * num_keep, text width], ready for the language model.

        `num_crops` [number of images] is checked, where given, as the model's forward takes it.
        """
        check_num_crops(num_crops, len(pixel_values), "crops of pixel_values")
        return self.project(self.encode_crops(pixel_values).features)

    def encode_in_step(self, pixel_values: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(features, those of blank crops): as many crops as the process that has most of them."""
        crops = 0 if pixel_values is None else len(pixel_values)
        blank = sharding.blank_crops(crops, self.device)
        if crops + blank == 0:
            return None, None
        side = self.config.vision_config.image_size
        if pixel_values is None:
            pixel_values = torch.empty(0, 3, side, side, dtype=torch.uint8)
        padded = torch.cat([pixel_values, pixel_values.new_zeros(blank, 3, side, side)])
        features = self.project(self.encode_crops(padded).features)
        own = crops * self.config.num_keep
        return features[:own] if crops else None, features[own:]

    def project(self, vision_features: Tensor) -> Tensor:
        """Kept tokens of C crops, [C, K, D] -> [C * K, text width]."""
        weight: Tensor = self.model.mm_projector[0].weight
        return self.model.mm_projector(vision_features.to(weight)).flatten(0, 1)

    @property
    def chunk_size(self) -> int:
        """Crops that pass the tower at a time."""
        if self.config.encoder_chunk_size is not None:
            return self.config.encoder_chunk_size
        return CPU_CHUNK_SIZE if self.device.type == "cpu" else CHUNK_SIZE

    def encode_crops(
        self,
        pixel_values: Tensor | Iterable[Tensor],
        progress: Callable[[int], None] | None = None,
    ) -> ReducedTokens:
        """Crops -> the kept vision tokens of each; of every other token nothing stays.

        Args:
            pixel_values: [C, 3, h, w], which passes `chunk_size` crops at a time, or chunks of
                such; uint8 or normalized floating point, on any device. Each chunk is moved to
                the model's device and normalized there.
            progress: called with the number of crops done so far.
        """
        if isinstance(pixel_values, Tensor):
            self.check_pixels(pixel_values)
            pixel_values = pixel_values.split(self.chunk_size)
        parts, done = [], 0
        for chunk in pixel_values:
            self.check_pixels(chunk)
            if self.model.gradient_checkpointing and self.training:
                # Of a chunk only pixels and kept tokens stay; even one input per layer would be
                # 15 GB for an 8K image in bfloat16.
                kept = checkpoint_activations(self.encode_chunk, chunk, use_reentrant=False)
            else:
                kept = self.encode_chunk(chunk)
            parts.append(kept)
            done += len(chunk)
            if progress is not None:
                progress(done)
        return ReducedTokens.cat(parts)

    def encode_chunk(self, pixel_values: Tensor) -> ReducedTokens:
        """Crops that fit the memory at once -> their kept vision tokens."""
        tower = self.model.vision_tower
        with reading_attention(tower.anchor, self.config) as attention:
            vision_tokens = tower(self.prepare_pixels(pixel_values))
        return reduce_tokens(vision_tokens, self.reghead, tower.anchor, self.config, attention())

    def get_video_features(self, pixel_values_videos: Tensor) -> Tensor:
        """[F, 3, h, w] frames -> [F * tokens per frame, text width]: projected, then pooled."""
        self.check_pixels(pixel_values_videos)
        parts = []
        for chunk in pixel_values_videos.split(self.chunk_size):
            vision_tokens = self.model.vision_tower(self.prepare_pixels(chunk))
            projected = self.model.mm_projector(vision_tokens[:, 1:])
            parts.append(
                pool_frames(projected, self.config.grid_size, self.config.video_pool_stride)
            )
        return torch.cat(parts).flatten(0, 1)

    def prepare_pixels(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            return normalize_crops(pixels, self.config.image_mean, self.config.image_std)
        return pixels

    def check_pixels(self, pixels: Tensor) -> None:
        side = self.config.vision_config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side) or len(pixels) == 0:
            raise ValueError(
                f"pixel_values must be [crops, 3, {side}, {side}] with at least one crop, "
                f"got {list(pixels.shape)}"
            )
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise TypeError(
                f"pixel_values must be uint8 or normalized floating point, got {pixels.dtype}"
            )


def check_num_crops(num_crops: Any, given: int, of: str, per_crop: int = 1) -> None:
    """Raises ValueError unless `num_crops`, where they are known, add up to what is given.

    Args:
        given: crops, or tokens of which each crop has `per_crop`.
        of: what they are, for the message.
    """
    if num_crops is not None and int(torch.as_tensor(num_crops).sum()) * per_crop != given:
        raise ValueError(
            f"num_crops must add up to the {given} {of}, got {torch.as_tensor(num_crops).tolist()}"
        )
