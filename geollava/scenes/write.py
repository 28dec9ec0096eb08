"""Scenes as files: images, and rows to train and to test on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geollava.common.outputs import written_whole
from geollava.scenes.layout import is_test, plan
from geollava.scenes.questions import box_rows, question_rows, training_row


def write_scenes(
    folder: Path,
    seeds: Sequence[int],
    *,
    size: int = 8064,
    scale: float = 1.0,
    ground: str = "mixed",
    variants: int = 1,
    choices: bool = True,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Scenes as JPEG files, with their questions in `train.json` and `test.json`.

    Of the scenes for testing, `boxes.json` asks what is in a box, and `grounding.json` for a box.

    Args:
        folder: made where it does not exist; scenes that are there already are not drawn again.
        ground: see `geollava.scenes.draw.draw`.
        variants, choices: conversations about each scene for training; see `training_row`.
        progress: called with the number of scenes done.
    """
    from geollava.scenes.draw import draw  # late: plans need no Pillow

    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": [], "boxes": [], "grounding": []}
    for done, seed in enumerate(seeds, 1):
        scene = plan(seed, size, scale)
        path = folder / "images" / f"{seed:06d}-{size}-{scale:g}-{ground}.jpg"
        if not path.exists():
            # Not `written_whole`, which looks through the folder for leftovers: there may be many
            # scenes, and the next run writes this name again.
            partial = path.with_name(f".{path.name}")
            # Chroma at full resolution: the color of a few pixels is asked for.
            draw(scene, ground).save(partial, "JPEG", quality=95, subsampling=0)
            partial.replace(path)
        name = f"images/{path.name}"
        if is_test(seed):
            rows["test"] += question_rows(scene, name)
            for part, more in zip(("boxes", "grounding"), box_rows(scene, name), strict=True):
                rows[part] += more
        else:
            rows["train"] += [
                training_row(scene, name, variant, choices=choices) for variant in range(variants)
            ]
        if progress is not None:
            progress(done)
    for name, content in rows.items():
        with written_whole(folder / f"{name}.json") as file:
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
