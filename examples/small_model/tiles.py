"""First lessons for the small model's language model: a few crops, and all that is in them.

    python examples/small_model/tiles.py FOLDER

Among the hundreds of tokens of a whole scene a language model that begins at random does not find
out what to look at.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tower import SIDE, crowd

from geollava.scene_drawing import draw
from geollava.scenes import DESCRIBE, KINDS, Scene, conversation, words_for

WIDTH, HEIGHT = 672, 336  # two crops


def write_tiles(folder: Path, seed: int, scale: float) -> list[dict[str, Any]]:
    """Eight pictures -> their training rows."""
    scene = crowd(seed, scale, fewest=8, most=48)
    picture = draw(scene, "mixed")
    rows = []
    for index in range((SIDE // WIDTH) * (SIDE // HEIGHT)):
        left, top = WIDTH * (index % 2), HEIGHT * (index // 2)
        name = f"images/{seed}-{index}.jpg"
        tile = picture.crop((left, top, left + WIDTH, top + HEIGHT))
        tile.save(folder / name, quality=95, subsampling=0)
        inside = [
            thing
            for thing in scene.things
            if left <= thing.x < left + WIDTH and top <= thing.y < top + HEIGHT
        ]
        if inside:
            turns = lessons(scene, inside, np.random.default_rng([seed, index]))
            row = {"id": f"tile-{seed}-{index}", "image": [name]}
            rows.append(row | {"conversations": conversation(turns)})
    return rows


def lessons(scene: Scene, things: list[Any], rng: np.random.Generator) -> list[tuple[str, str]]:
    ordered = sorted(things, key=lambda thing: (thing.y // 336, thing.x // 336, thing.y))
    turns = [(DESCRIBE, ", ".join(words_for(scene, thing) for thing in ordered))]
    for kind in rng.permutation(KINDS)[:2]:
        count = sum(thing.kind == kind for thing in things)
        turns.append((f"How many {kind}s are in the image?", str(count)))
    return [turns[index] for index in rng.permutation(len(turns))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=700, help="scenes, 8 tiles of each")
    parser.add_argument("--scale", type=float, default=1.3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    (options.folder / "images").mkdir(parents=True, exist_ok=True)
    seeds = range(3 * 10**6, 3 * 10**6 + options.count)
    with ProcessPoolExecutor(options.workers) as pool:
        parts = pool.map(
            write_tiles,
            [options.folder] * len(seeds),
            seeds,
            [options.scale] * len(seeds),
        )
        rows = [row for part in parts for row in part]
    (options.folder / "train.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
