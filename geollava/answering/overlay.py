"""What the model looked at: kept tokens and merged background, drawn over the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from geollava.common.outputs import written_whole
from geollava.imagery import as_scene, image_box, resized

if TYPE_CHECKING:
    from geollava.model.token_reduction import ReducedTokens

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LONGEST_SIDE = 2400  # pixels of the picture
KEPT_COLOR = (255, 176, 32)
MERGED_LIGHT, LEFT_OUT_LIGHT = 0.8, 0.35


def token_maps(kept: ReducedTokens, canvas_grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the canvas's tokens went, as two bool maps [rows, cols] over its token grid.

    Args:
        kept: of all crops, row by row.
        canvas_grid: (rows, cols) of crops.

    Returns:
        (roots, members): the tokens that were kept, and all that are averaged into them.
    """
    assert kept.grid_size is not None
    num_tokens = kept.assignment.shape[1]
    # Slots that are not valid point at cells of their own, so clearing them hides nothing valid.
    roots = torch.zeros(len(kept.assignment), num_tokens, dtype=torch.bool)
    roots.scatter_(1, kept.keep_indices.cpu(), kept.valid.cpu())
    members = roots.gather(1, kept.assignment.cpu())
    shape = (*canvas_grid, *kept.grid_size)
    return tuple(  # type: ignore[return-value]
        grid.view(shape).permute(0, 2, 1, 3).reshape(shape[0] * shape[2], shape[1] * shape[3])
        for grid in (roots, members)
    )


def draw(image: Any, kept: ReducedTokens, canvas_size: tuple[int, int]) -> Image.Image:
    """The image, small: kept tokens bright and framed, those merged into them pale, the rest dark.

    Args:
        image: what was asked about: a scene, or what `imagery.as_scene` makes one of.
        kept: the kept tokens of its crops, row by row.
        canvas_size: (width, height) in pixels of the canvas they were cut from.
    """
    assert kept.grid_size is not None
    crop_rows, crop_cols = canvas_grid(len(kept.assignment), canvas_size)
    roots, members = token_maps(kept, (crop_rows, crop_cols))
    rows, cols = roots.shape
    cell = max(2, LONGEST_SIDE // max(rows, cols))  # pixels of the picture per token
    scale = cell * cols / canvas_size[0]

    scene = as_scene(image)
    left, top, right, bottom = (round(edge * scale) for edge in image_box(scene.size, canvas_size))
    canvas = Image.new("RGB", (cell * cols, cell * rows))
    canvas.paste(resized(scene, (right - left, bottom - top)), (left, top))
    pixels = np.asarray(canvas).astype(np.float32)

    def light(tokens: Tensor) -> np.ndarray:
        return tokens.repeat_interleave(cell, 0).repeat_interleave(cell, 1).numpy()[..., None]

    gray = pixels.mean(axis=2, keepdims=True)
    pixels = np.where(light(roots), pixels, MERGED_LIGHT * (pixels + gray) / 2)
    pixels = np.where(light(members), pixels, LEFT_OUT_LIGHT * gray).astype(np.float32)
    frame = np.zeros((cell, cell), dtype=bool)
    frame[[0, -1], :] = frame[:, [0, -1]] = True
    framed = np.kron(roots.numpy(), frame)
    pixels[framed] = 0.35 * pixels[framed] + 0.65 * np.array(KEPT_COLOR, dtype=np.float32)
    picture = Image.fromarray(pixels.astype(np.uint8)).crop((left, top, right, bottom))
    return with_caption(picture, roots, members)


def canvas_grid(crops: int, canvas_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, cols) of crops on a canvas."""
    width, height = canvas_size
    cols = round((crops * width / height) ** 0.5)
    return crops // cols, cols


def with_caption(picture: Image.Image, roots: Tensor, members: Tensor) -> Image.Image:
    size = max(14, picture.width // 80)
    caption = Image.new("RGB", (picture.width, picture.height + 2 * size), (16, 16, 16))
    caption.paste(picture, (0, 0))
    text = (
        f"{int(roots.sum()):,} of {roots.numel():,} tokens kept (framed): the means of "
        f"{int(members.sum()):,} (pale); {1 - float(members.float().mean()):.0%} left out (dark)"
    )
    font = ImageFont.load_default(size)
    ImageDraw.Draw(caption).text(
        (size // 2, picture.height + size), text, font=font, fill=(235, 235, 235), anchor="lm"
    )
    return caption


def save(picture: Image.Image, path: Path) -> None:
    """Writes the picture whole or not at all."""
    with written_whole(path) as partial:
        picture.save(partial)
