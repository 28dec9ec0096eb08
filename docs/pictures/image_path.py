"""The path of an image, drawn by the code that does it: scene, canvas, crop, clusters, overlay."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from geollava import Session, scenes
from geollava.answering.encoding import SceneTokens
from geollava.imagery import as_scene, resized
from geollava.scenes.draw import draw as draw_scene

SEED, SIZE, SCALE = 80_000, 1344, 1.3  # the scene of `make demo`
WIDTH = 760  # pixels of a picture
CUT = (100, 200, 1300, 1200)  # of the scene, to be of another shape than any canvas
LINE, KEPT = (255, 255, 255), (255, 176, 32)
ENLARGED = 2  # pixels of a picture for each of a crop


def draw(folder: Path) -> None:
    planned = scenes.plan(SEED, SIZE, SCALE)
    picture = draw_scene(planned)
    save(picture.resize((WIDTH, WIDTH), Image.Resampling.LANCZOS), folder / "image-scene.jpg")

    session = Session(device="cpu")
    on_canvas(session, picture.crop(CUT)).save(folder / "image-canvas.jpg", quality=85)

    seen = session.see(picture)
    (tokens,) = seen.encode()
    pad = planned.things[0]  # the helipad, with a vehicle beside it
    side, cols = tokens.canvas.crop_size, tokens.canvas.grid[1]
    row, col = int(pad.y) // side, int(pad.x) // side
    crop = picture.crop((col * side, row * side, (col + 1) * side, (row + 1) * side))
    save(in_patches(crop, tokens), folder / "image-crop.jpg")
    save(in_clusters(crop, tokens, row * cols + col), folder / "image-clusters.jpg")

    overlay = seen.overlay()
    overlay.thumbnail((1000, 2000), Image.Resampling.LANCZOS)
    save(overlay, folder / "image-overlay.jpg")


def save(picture: Image.Image, path: Path) -> None:
    picture.save(path, quality=88)


def on_canvas(session: Session, picture: Image.Image) -> Image.Image:
    """An image in the middle of its canvas, with the lines along which crops are cut."""
    scene = as_scene(picture)
    canvas = session.processor.image_processor.choose_canvas(scene.size)
    sheet = Image.new("RGB", canvas.size)
    sheet.paste(resized(scene, canvas.fitted_size, "pillow"), canvas.image_box[:2])
    scale = WIDTH / sheet.width
    sheet = sheet.resize((WIDTH, round(sheet.height * scale)), Image.Resampling.LANCZOS)
    pen, side = ImageDraw.Draw(sheet), canvas.crop_size * scale
    rows, cols = canvas.grid
    for col in range(1, cols):
        pen.line([col * side, 0, col * side, sheet.height], fill=LINE, width=2)
    for row in range(1, rows):
        pen.line([0, row * side, sheet.width, row * side], fill=LINE, width=2)
    for crop in range(rows * cols):
        row, col = divmod(crop, cols)
        place = (col * side + 10, row * side + 6)
        pen.text(place, str(crop), fill=LINE, font_size=22, stroke_width=2, stroke_fill="black")
    return sheet


def enlarged(crop: Image.Image) -> Image.Image:
    return crop.resize((ENLARGED * crop.width, ENLARGED * crop.height), Image.Resampling.NEAREST)


def in_patches(crop: Image.Image, tokens: SceneTokens) -> Image.Image:
    """A crop with the borders of its patches, each of which becomes a token."""
    picture = enlarged(crop)
    pen = ImageDraw.Draw(picture, "RGBA")
    step = ENLARGED * tokens.map.pitch[0]
    for line in range(1, tokens.map.grid_size[0]):
        pen.line([line * step, 0, line * step, picture.height], fill=(*LINE, 90))
        pen.line([0, line * step, picture.width, line * step], fill=(*LINE, 90))
    return picture


def in_clusters(crop: Image.Image, tokens: SceneTokens, index: int) -> Image.Image:
    """A crop whose tokens have the color of their cluster; roots that are kept are framed."""
    kept, (rows, cols) = tokens.kept, tokens.map.grid_size
    roots = kept.assignment[index].reshape(rows, cols).numpy()
    shown = set(kept.keep_indices[index][kept.valid[index]].tolist())
    picture = enlarged(crop)
    pen = ImageDraw.Draw(picture, "RGBA")
    step = round(ENLARGED * tokens.map.pitch[0])
    names, sizes = np.unique(roots, return_counts=True)
    hues = {root: place / len(names) for place, root in enumerate(names[np.argsort(-sizes)])}
    for row in range(rows):
        for col in range(cols):
            root = roots[row, col]
            strong = 150 if root in shown else 60
            color = colorsys.hsv_to_rgb(hues[root], 0.75, 1.0)
            box = [col * step, row * step, (col + 1) * step - 1, (row + 1) * step - 1]
            pen.rectangle(box, fill=(*(round(255 * part) for part in color), strong))
    for root in shown:
        row, col = divmod(root, cols)
        box = [col * step, row * step, (col + 1) * step - 1, (row + 1) * step - 1]
        pen.rectangle(box, outline=(0, 0, 0, 255), width=5)
        pen.rectangle(box, outline=(*KEPT, 255), width=3)
    return picture
