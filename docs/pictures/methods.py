"""What each method keeps of one crop: `_generated/methods/NAME.jpg`, and all of them in one."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import sample
from tokenprune import list_methods, method_class

COLUMNS = 4
SMALL = 336


def draw(folder: Path) -> None:
    (folder / "methods").mkdir(exist_ok=True)
    small = [(sample.crop(), "the crop")]
    for name in list_methods():
        if not sample.can_reduce(name):
            continue
        result = sample.reduced(name)
        overlay = sample.overlay(result)
        text = sample.legend(result, merges=method_class(name).merges)
        picture = sample.side_by_side((sample.enlarged(), "the crop"), (overlay, text))
        picture.save(folder / "methods" / f"{name}.jpg", quality=88)
        small.append((overlay, name))
    all_in_one(small).save(folder / "methods.jpg", quality=88)


def all_in_one(panels: list[tuple[Image.Image, str]]) -> Image.Image:
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    side = (SMALL, SMALL)
    sheets = [
        sample.side_by_side(
            *((picture.resize(side, Image.Resampling.LANCZOS), name) for picture, name in row)
        )
        for row in rows
    ]
    whole = Image.new("RGB", (sheets[0].width, sum(s.height for s in sheets)), sample.PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole
