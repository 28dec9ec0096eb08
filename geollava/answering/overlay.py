"""What the model looked at: kept tokens and merged background, drawn over the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from geollava.common.outputs import written_whole
from geollava.imagery import as_scene, resized

if TYPE_CHECKING:
    from geollava.answering.encoding import SceneTokens

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LONGEST_SIDE = 2400  # pixels of the picture
KEPT_COLOR = (255, 176, 32)
MERGED_LIGHT, LEFT_OUT_LIGHT = 0.8, 0.35


def token_maps(tokens: SceneTokens) -> tuple[np.ndarray, np.ndarray]:
    """Where the canvas's tokens went, as two bool maps [rows, cols] over its token grid.

    Returns:
        (roots, members): the tokens that the model reads, and all that are averaged into them.
    """
    kept = tokens.kept
    shown = kept.valid if tokens.shown is None else kept.valid & tokens.shown
    # Slots that are not shown point at cells of their own, so clearing them hides nothing else.
    roots = torch.zeros(kept.assignment.shape, dtype=torch.bool)
    roots.scatter_(1, kept.keep_indices.cpu(), shown.cpu())
    members = roots.gather(1, kept.assignment.cpu())
    return tokens.map.over_canvas(roots.numpy()), tokens.map.over_canvas(members.numpy())


def draw(image: Any, tokens: SceneTokens) -> Image.Image:
    """The image, small: kept tokens bright and framed, those merged into them pale, the rest dark.

    Args:
        image: what was asked about: a scene, or what `imagery.as_scene` makes one of.
        tokens: what is kept of it.
    """
    roots, members = token_maps(tokens)
    rows, cols = roots.shape
    cell = max(2, LONGEST_SIDE // max(rows, cols))  # pixels of the picture per token
    scale = cell * cols / tokens.canvas.size[0]

    left, top, right, bottom = (round(edge * scale) for edge in tokens.canvas.image_box)
    canvas = Image.new("RGB", (cell * cols, cell * rows))
    canvas.paste(resized(as_scene(image), (right - left, bottom - top)), (left, top))
    pixels = np.asarray(canvas).astype(np.float32)

    def light(flags: np.ndarray) -> np.ndarray:
        return flags.repeat(cell, 0).repeat(cell, 1)[..., None]

    gray = pixels.mean(axis=2, keepdims=True)
    pixels = np.where(light(roots), pixels, MERGED_LIGHT * (pixels + gray) / 2)
    pixels = np.where(light(members), pixels, LEFT_OUT_LIGHT * gray).astype(np.float32)
    frame = np.zeros((cell, cell), dtype=bool)
    frame[[0, -1], :] = frame[:, [0, -1]] = True
    framed = np.kron(roots, frame)
    pixels[framed] = 0.35 * pixels[framed] + 0.65 * np.array(KEPT_COLOR, dtype=np.float32)
    picture = Image.fromarray(pixels.astype(np.uint8)).crop((left, top, right, bottom))
    return with_caption(picture, roots, members)


def with_caption(picture: Image.Image, roots: np.ndarray, members: np.ndarray) -> Image.Image:
    size = max(14, picture.width // 80)
    caption = Image.new("RGB", (picture.width, picture.height + 2 * size), (16, 16, 16))
    caption.paste(picture, (0, 0))
    text = (
        f"{int(roots.sum()):,} of {roots.size:,} tokens kept (framed): the means of "
        f"{int(members.sum()):,} (pale); {1 - members.mean():.0%} left out (dark)"
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
