"""File -> canvas -> crops, with the grid choice and the pixels of the published pipeline."""

from __future__ import annotations

import math
import os
import re
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
# 3 bytes a pixel: half a gigapixel is 1.5 GB decoded.
MAX_PIXELS = 512 * 1024 * 1024
MIN_SIDE = 14  # one patch
CONVERTIBLE_MODES = (
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "1",
    "CMYK",
    "YCbCr",
)

_pillow_limit = threading.Lock()


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes a JPEG, PNG, WebP or TIFF file to RGB.

    Gray, palette, CMYK and YCbCr images are converted; an alpha channel is dropped, as the
    published pipeline does, and EXIF orientation is not applied. Of several frames the first is
    taken.

    Args:
        path: the file.
        max_pixels: refuse images larger than this before any pixel is decoded.

    Raises:
        ValueError: not such an image; too large or too small; samples of more than 8 bits;
            truncated.
    """
    path = Path(path)
    image = open_checked(path, max_pixels)
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError, EOFError, MemoryError) as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error
    finally:
        image.close()


def read_size(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels from the header; raises as `read_image` does, decodes nothing."""
    with open_checked(Path(path), max_pixels) as image:
        return image.size


def open_checked(path: Path, max_pixels: int) -> Image.Image:
    """The opened file, its size and kind of samples checked, no pixel decoded."""
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} must be an image file, it is not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} must be an image file, it is empty (0 bytes)")
    image = open_header(path)
    try:
        check_size(path, image.size, max_pixels)
        if image.mode not in CONVERTIBLE_MODES:
            raise ValueError(
                f"{path} has samples of Pillow mode {image.mode}; 8-bit gray, RGB, palette or CMYK "
                "is expected. Stretch it to 8 bits first"
            )
    except ValueError:
        image.close()
        raise
    return image


def open_header(path: Path) -> Image.Image:
    # Pillow's own guard against bombs has one limit for all images; ours is checked right after.
    with _pillow_limit, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=FORMATS)
        except UnidentifiedImageError as error:
            expected = ", ".join(FORMATS)
            raise ValueError(f"{path} must be an image ({expected}), it is not") from error
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = previous


def check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(
            f"{path} is {width} x {height} = {width * height / 1e6:,.0f} megapixels, "
            f"more than the limit of {max_pixels / 1e6:,.0f}"
        )
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"{path} is {width} x {height} pixels, each side must be {MIN_SIDE} or more (a patch)"
        )


def allowed_canvases(crop_size: int, max_crops: int, max_aspect_ratio: int) -> list[list[int]]:
    """[width, height] in pixels of each canvas of 2 to `max_crops` crops, in published order."""
    return [
        [crop_size * cols, crop_size * rows]
        for cols in range(1, max_crops + 1)
        for rows in range(1, max_crops // cols + 1)
        if cols * rows > 1 and max(cols, rows) <= max_aspect_ratio * min(cols, rows)
    ]


def parse_canvases(pinpoints: str | Sequence[Sequence[int]], crop_size: int) -> list[list[int]]:
    """Canvases as a config lists them: pairs of pixels, or a range such as "(1x1),...,(6x6)"."""
    if isinstance(pinpoints, str):
        counts = [(int(a), int(b)) for a, b in re.findall(r"(\d+)\s*[x,]\s*(\d+)", pinpoints)]
        if "..." in pinpoints and len(counts) == 2:
            (first_cols, first_rows), (last_cols, last_rows) = counts
            return [
                [crop_size * cols, crop_size * rows]
                for cols in range(first_cols, last_cols + 1)
                for rows in range(first_rows, last_rows + 1)
            ]
        pinpoints = counts
    canvases = [[int(width), int(height)] for width, height in pinpoints]
    bad = [canvas for canvas in canvases if min(canvas) < 1 or any(s % crop_size for s in canvas)]
    if bad or not canvases:
        raise ValueError(
            f"image_grid_pinpoints must be sizes in multiples of {crop_size} px, "
            f"got {bad[0] if bad else 'none'}"
        )
    return canvases


def select_canvas(width: int, height: int, canvases: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The canvas that shows most of the image's pixels, and of those the one that wastes least.

    Args:
        width, height: of the image, in pixels.
        canvases: [width, height] in pixels; ties go to the first.

    Returns:
        (width, height) in pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image must have at least one pixel, got {width} x {height}")
    best, best_key = None, (-1, math.inf)
    for canvas_width, canvas_height in canvases:
        scale = min(canvas_width / width, canvas_height / height)
        scaled = int(width * scale) * int(height * scale)
        effective = min(scaled, width * height)
        wasted = canvas_width * canvas_height - effective
        if effective > best_key[0] or (effective == best_key[0] and wasted < best_key[1]):
            best, best_key = (canvas_width, canvas_height), (effective, wasted)
    assert best is not None
    return best


def fitted_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an image resized to fit a canvas: one side fills it, the other follows."""
    (width, height), (canvas_width, canvas_height) = size, canvas
    scale_width, scale_height = canvas_width / width, canvas_height / height
    if scale_width < scale_height:
        return canvas_width, min(math.ceil(height * scale_width), canvas_height)
    return min(math.ceil(width * scale_height), canvas_width), canvas_height


def image_box(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the image on its canvas, in canvas pixels."""
    width, height = fitted_size(size, canvas)
    left, top = (canvas[0] - width) // 2, (canvas[1] - height) // 2
    return left, top, left + width, top + height


def fit_canvas(image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    """The image resized to fit (Pillow's bicubic filter), centered on a black canvas."""
    box = image_box(image.size, canvas)
    resized = image.resize(fitted_size(image.size, canvas), Image.Resampling.BICUBIC)
    if resized.size == canvas:
        return resized
    framed = Image.new("RGB", canvas)
    framed.paste(resized, box[:2])
    return framed


def cut_crops(canvas: Image.Image, crop_size: int) -> Tensor:
    """An RGB canvas -> [C, 3, crop_size, crop_size] uint8, row by row."""
    pixels = torch.from_numpy(np.asarray(canvas).copy())  # [height, width, 3]
    rows, cols = pixels.shape[0] // crop_size, pixels.shape[1] // crop_size
    tiles = pixels.view(rows, crop_size, cols, crop_size, 3).permute(0, 2, 4, 1, 3)
    return tiles.reshape(rows * cols, 3, crop_size, crop_size)


def normalize_crops(crops: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [C, 3, h, w] -> float32, (value / 255 - mean) / std per channel."""
    channel_mean = torch.tensor(mean, device=crops.device)[:, None, None]
    channel_std = torch.tensor(std, device=crops.device)[:, None, None]
    return (crops.float() / 255 - channel_mean) / channel_std
