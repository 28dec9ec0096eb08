"""Images and video frames -> crops as the published model cuts them, by transformers' names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature

from geollava import imagery
from geollava.common.readable import named
from geollava.model import checkpoint, published
from geollava.model.configuration import MOST, GeoLlavaConfig, check_channels, check_count

# What a `GeoLlavaImageProcessor` is made of, and saved as.
OPTIONS = (
    "crop_size",
    "image_grid_pinpoints",
    "max_crops",
    "max_aspect_ratio",
    "do_normalize",
    "include_thumbnail",
    "resize",
    "image_mean",
    "image_std",
)


def flatten(images: Any) -> list[Any]:
    """One image, a list, or a list per prompt -> a flat list."""
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in flatten(entry)]
    return [images]


class GeoLlavaImageProcessor(BaseImageProcessor):
    """Images -> crops, with the published model's grid choice and pixels.

    Args:
        crop_size: side of a crop in pixels.
        image_grid_pinpoints: [[width, height], ...] of the allowed canvases; None is the 8K rule.
        max_crops, max_aspect_ratio: the rule's limits.
        do_normalize: return normalized float32 instead of uint8, which the model normalizes itself.
        include_thumbnail: put the whole image, squashed into one crop, before the crops.
        resize: "pillow", to the bit as published, or "fast"; see `imagery.crop_rows`.
        image_mean, image_std: per channel, for values scaled to [0, 1].
    """

    model_input_names = ["pixel_values", "num_crops"]  # noqa: RUF012

    def __init__(
        self,
        crop_size: int = 336,
        image_grid_pinpoints: Any = None,
        max_crops: int = 576,
        max_aspect_ratio: int = 49,
        do_normalize: bool = False,
        include_thumbnail: bool = False,
        resize: str = "pillow",
        image_mean: Sequence[float] = published.CLIP_MEAN,
        image_std: Sequence[float] = published.CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.crop_size = crop_size
        self.image_grid_pinpoints = image_grid_pinpoints
        self.max_crops = max_crops
        self.max_aspect_ratio = max_aspect_ratio
        self.do_normalize = do_normalize
        self.include_thumbnail = include_thumbnail
        self.resize = resize
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    @classmethod
    def from_config(cls, config: GeoLlavaConfig, **kwargs: Any) -> GeoLlavaImageProcessor:
        """The processor that a model's configuration asks for."""
        options = {
            "crop_size": config.vision_config.image_size,
            "image_grid_pinpoints": config.image_grid_pinpoints,
            "max_crops": config.max_crops,
            "max_aspect_ratio": config.max_aspect_ratio,
            "image_mean": config.image_mean,
            "image_std": config.image_std,
        }
        return cls(**(options | kwargs))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """From our own saved form, or from a published checkpoint's `config.json`."""
        folder = checkpoint.resolve_folder(pretrained_model_name_or_path, weights=False)
        path = folder / "preprocessor_config.json"
        saved = saved_options(folder, path.name)
        if not saved:
            path = folder / "processor_config.json"
            saved = saved_options(folder, path.name).get("image_processor", {})
        if not saved:
            config = GeoLlavaConfig.from_pretrained(folder)
            with named(folder / "config.json", "no image processor can be made of it"):
                processor = cls.from_config(config, **kwargs)
                processor.check()
            return processor
        if not isinstance(saved, dict):
            raise ValueError(f"{path}: image_processor must be an object, got {saved!r}")
        saved = {name: value for name, value in saved.items() if name in OPTIONS}
        with named(path, "the image processor cannot be made of it"):
            processor = cls(**(saved | kwargs))
            processor.check()
        return processor

    def check(self) -> None:
        """Raises ValueError or TypeError for an option that no image can be cut by."""
        for name in ("crop_size", "max_crops", "max_aspect_ratio"):
            check_count(name, getattr(self, name), 1, MOST.get(name))
        if self.resize not in imagery.RESIZE_MODES:
            modes = ", ".join(imagery.RESIZE_MODES)
            raise ValueError(f"resize must be one of {modes}, got {self.resize!r}")
        check_channels("image_mean", self.image_mean)
        check_channels("image_std", self.image_std)
        self.canvases()

    def canvases(self) -> list[list[int]]:
        """Allowed canvases as [width, height] in pixels."""
        if self.image_grid_pinpoints is not None:
            return imagery.parse_canvases(self.image_grid_pinpoints, self.crop_size)
        return imagery.allowed_canvases(self.crop_size, self.max_crops, self.max_aspect_ratio)

    def select_canvas(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of the canvas for an image of that size."""
        return imagery.select_canvas(width, height, self.canvases())

    def choose_canvas(self, image_size: tuple[int, int]) -> imagery.Canvas:
        """The canvas for an image of (width, height) pixels."""
        return imagery.Canvas.choose(image_size, self.canvases(), self.crop_size)

    def crop_rows(self, scene: imagery.Scene, canvas: imagery.Canvas) -> Iterator[Tensor]:
        """A scene's crops, a row of the canvas at a time: [cols, 3, crop_size, crop_size] uint8."""
        return imagery.crop_rows(scene, canvas, self.resize)

    def cut(self, image: Any) -> Tensor:
        """One image -> [C, 3, crop_size, crop_size] uint8 row by row, thumbnail first if any."""
        scene, side = imagery.as_scene(image), self.crop_size
        crops = imagery.all_crops(scene, self.choose_canvas(scene.size), self.resize)
        if not self.include_thumbnail:
            return crops
        squashed = imagery.resized(scene, (side, side), self.resize)
        return torch.cat([imagery.cut_crops(np.asarray(squashed), side), crops])

    def cut_frame(self, frame: Any) -> Tensor:
        """One frame -> [1, 3, crop_size, crop_size] uint8: shorter side fitted, center cut out."""
        frame, side = imagery.to_rgb(frame), self.crop_size
        width, height = frame.size
        shorter = min(width, height)
        resized = frame.resize(
            (int(side * width / shorter), int(side * height / shorter)), Image.Resampling.BICUBIC
        )
        left, top = (resized.width - side) // 2, (resized.height - side) // 2
        middle = resized.crop((left, top, left + side, top + side))
        return imagery.cut_crops(np.asarray(middle), side)

    def finish(self, crops: Iterable[Tensor]) -> Tensor:
        pixels = torch.cat(list(crops))
        if self.do_normalize:
            return imagery.normalize_crops(pixels, self.image_mean, self.image_std)
        return pixels

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, **kwargs)

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Images -> `pixel_values` [sum of crops, 3, h, w] uint8 and `num_crops` [images] int64.

        Args:
            images: one image or a list; Pillow images, paths, uint8 arrays [H, W, 3] or tensors
                [3, H, W].
        """
        check_return_tensors(kwargs.pop("return_tensors", "pt"))
        if kwargs:
            raise TypeError(f"GeoLlavaImageProcessor does not take {', '.join(sorted(kwargs))}")
        crops = [self.cut(image) for image in flatten(images)]
        if not crops:
            raise ValueError("images must hold at least one image, got none")
        num_crops = torch.tensor([len(part) for part in crops])
        return BatchFeature({"pixel_values": self.finish(crops), "num_crops": num_crops})


def check_return_tensors(value: str | None) -> None:
    if value not in (None, "pt"):
        raise ValueError(f"return_tensors must be 'pt', got {value!r}")


def saved_options(folder: Path, name: str) -> dict[str, Any]:
    """One file of our own saved form; nothing where it is absent or the checkpoint is published.

    A published checkpoint may hold its tower's settings under the same name.
    """
    path, config = folder / name, folder / "config.json"
    if not path.is_file():
        return {}
    if config.is_file():
        model_type = checkpoint.read_json(config).get("model_type")
        if model_type == published.PUBLISHED_MODEL_TYPE:
            return {}
    return checkpoint.read_json(path)
