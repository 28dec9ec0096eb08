"""The picture at the top: a scene with the tokens that the tower makes of it, and those that stay.

The README shows a copy, `docs/banner.jpg`: `python docs/pictures/banner.py` writes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from geollava import Session, scenes
from geollava.answering.overlay import token_maps
from geollava.scenes.draw import draw as draw_scene

SEED, SIZE, SCALE = 80_000, 1344, 1.3  # the scene of `make demo`
PANEL, GAP, CAPTION = 640, 16, 44  # pixels
KEPT = (255, 176, 32)
FAINT = (255, 255, 255, 28)
WINDOW = (190, 769, 1110, 1344)  # of the scene: trucks in a desert, a helipad and ships


def draw(folder: Path) -> None:
    save(folder / "banner.jpg")


def save(path: Path) -> None:
    picture = draw_scene(scenes.plan(SEED, SIZE, SCALE))
    (tokens,) = Session(device="cpu").see(picture).encode()
    roots, _ = token_maps(tokens)
    banner = Image.new("RGB", (2 * PANEL + GAP, PANEL * 5 // 8 + CAPTION), "white")
    for place, (panel, words) in enumerate(
        (
            (with_every_token(picture, roots.shape), f"{roots.size:,} visual tokens"),
            (with_kept_tokens(picture, roots), f"{roots.sum():,} stay, the others merge into them"),
        )
    ):
        left = place * (PANEL + GAP)
        banner.paste(panel.crop(WINDOW).resize((PANEL, PANEL * 5 // 8)), (left, CAPTION))
        font = ImageFont.load_default(26)
        pen = ImageDraw.Draw(banner)
        pen.text((left, CAPTION // 2), words, fill=(40, 40, 40), font=font, anchor="lm")
    banner.save(path, quality=90)


def with_every_token(picture: Image.Image, grid: tuple[int, ...]) -> Image.Image:
    shown = picture.copy()
    pen = ImageDraw.Draw(shown, "RGBA")
    for line in range(1, grid[0]):
        at = line * SIZE / grid[0]
        pen.line([at, 0, at, SIZE], fill=FAINT)
        pen.line([0, at, SIZE, at], fill=FAINT)
    return shown


def with_kept_tokens(picture: Image.Image, roots: np.ndarray) -> Image.Image:
    gray = picture.convert("L").convert("RGB")
    shown = Image.blend(Image.blend(picture, gray, 0.7), Image.new("RGB", picture.size), 0.45)
    pen = ImageDraw.Draw(shown)
    cell = SIZE / len(roots)
    for row, col in np.argwhere(roots):
        left, top = round(col * cell), round(row * cell)
        box = (left, top, round(left + cell), round(top + cell))
        shown.paste(picture.crop(box), box[:2])
        pen.rectangle(box, outline=KEPT, width=2)
    return shown


if __name__ == "__main__":
    save(Path(__file__).parents[1] / "banner.jpg")
