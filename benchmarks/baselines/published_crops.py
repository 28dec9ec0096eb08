"""The published way from a file to normalized crops: whole images, one crop at a time.

What `geollava.imagery` is measured against. The image is decoded, resized and pasted on black as
Pillow images; every crop, and a thumbnail that the model later drops, then passes transformers'
CLIP image processor by itself and becomes float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil

from geollava.imagery import Canvas, allowed_canvases


def decode(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def crops_of(image: Image.Image, crop_size: int = 336, max_crops: int = 576) -> Tensor:
    """An RGB image -> [1 + C, 3, crop_size, crop_size] float32, the thumbnail first."""
    canvas = Canvas.choose(image.size, allowed_canvases(crop_size, max_crops, 49), crop_size)
    framed = Image.new("RGB", canvas.size)
    framed.paste(image.resize(canvas.fitted_size), canvas.image_box[:2])
    crops = [
        framed.crop((left, top, left + crop_size, top + crop_size))
        for top in range(0, canvas.size[1], crop_size)
        for left in range(0, canvas.size[0], crop_size)
    ]
    thumbnail = image.resize((crop_size, crop_size))
    processor: Any = CLIPImageProcessorPil(size=crop_size, crop_size=crop_size)
    pixels = [
        processor.preprocess(crop, return_tensors="pt")["pixel_values"][0]
        for crop in [thumbnail, *crops]
    ]
    return torch.stack(pixels)
