"""Scenes as files: images, and rows to train and to test on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geollava.common.choices import SceneLayout
from geollava.common.outputs import written_whole
from geollava.scenes.asked_rows import asked_rows, asked_training_row
from geollava.scenes.layout import is_test, plan
from geollava.scenes.questions import box_rows, question_rows, training_row
from geollava.scenes.scene import Scene
from geollava.scenes.varied_plan import plan_varied


def write_scenes(
    folder: Path,
    seeds: Sequence[int],
    *,
    size: int = 8064,
    scale: float | None = None,
    ground: str = "mixed",
    layout: SceneLayout = "xlrs",
    variants: int = 1,
    choices: bool = True,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Scenes as JPEG files, with their questions in `train.json` and `test.json`.

    Of the scenes for testing laid out as "xlrs", `boxes.json` asks what is in a box, and
    `grounding.json` for a box.

    Args:
        folder: made where it does not exist; scenes that are there already are not drawn again.
        scale: of the objects; 1 by default, drawn for each scene where they are "varied".
        ground: see `geollava.scenes.draw.draw`.
        layout: "xlrs" is `plan`, eight questions to a scene; "varied" is `plan_varied`, questions
            in many words.
        variants, choices: conversations about each scene for training; see `training_row`.
        progress: called with the number of scenes done.
    """
    from geollava.scenes.draw import draw  # late: plans need no Pillow

    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    if layout == "xlrs":
        rows |= {"boxes": [], "grounding": []}
    for done, seed in enumerate(seeds, 1):
        scene = (
            plan(seed, size, scale or 1.0) if layout == "xlrs" else plan_varied(seed, size, scale)
        )
        path = folder / "images" / f"{seed:06d}-{size}-{scene.scale:g}-{ground}.jpg"
        if not path.exists():
            # Not `written_whole`, which looks through the folder for leftovers: there may be many
            # scenes, and the next run writes this name again.
            partial = path.with_name(f".{path.name}")
            # Chroma at full resolution: the color of a few pixels is asked for.
            draw(scene, ground).save(partial, "JPEG", quality=95, subsampling=0)
            partial.replace(path)
        name = f"images/{path.name}"
        for part, more in rows_of(scene, name, layout, variants, choices).items():
            rows[part] += more
        if progress is not None:
            progress(done)
    for name, content in rows.items():
        with written_whole(folder / f"{name}.json") as file:
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def rows_of(
    scene: Scene, image: str, layout: SceneLayout, variants: int, choices: bool
) -> dict[str, list[dict[str, Any]]]:
    """What a scene adds to each file."""
    varied = layout == "varied"
    if not is_test(scene.seed):
        row = asked_training_row if varied else training_row
        return {
            "train": [row(scene, image, variant, choices=choices) for variant in range(variants)]
        }
    if varied:
        return {"test": asked_rows(scene, image)}
    boxes, grounding = box_rows(scene, image)
    return {"test": question_rows(scene, image), "boxes": boxes, "grounding": grounding}
