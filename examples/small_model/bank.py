"""Scenes as the small model's language model gets them: the tokens that the tower keeps of crops.

    python examples/small_model/bank.py TOWER_FOLDER BANK_FOLDER

Each crop is drawn and encoded once, with what is true of it. `images.py` puts crops of different
scenes together: a thousand of them make more scenes than can be learned by heart.
"""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts import CROP, WORDS, split_crops
from PIL import Image
from running import console
from torch import Tensor
from tower import label

from geollava import GeoLlavaForConditionalGeneration
from geollava.imagery import cut_crops
from geollava.scenes import Fact, Facts, is_test, plan_varied
from geollava.scenes.draw import draw
from geollava.scenes.facts import fact_of

SIZES, SHARES = (672, 1344), (0.8, 0.2)


@dataclass(frozen=True)
class Crop:
    """A crop of a scene.

    Attributes:
        features: [K, D] kept tokens; zeros in empty slots.
        labels: of each token, what it shows, as `tower.label` numbers it; -1 in empty slots.
        things: whose middle lies in it. land_use: of its quarter.
    """

    features: Tensor
    labels: dict[str, Tensor]
    things: tuple[Fact, ...]
    land_use: str


def encode(model: GeoLlavaForConditionalGeneration, seed: int) -> list[Crop]:
    """The crops of a scene, row by row."""
    rng = np.random.default_rng([seed, 23])
    scene = plan_varied(seed, int(rng.choice(SIZES, p=SHARES)))
    file = io.BytesIO()
    draw(scene, "mixed").save(file, "JPEG", quality=95, subsampling=0)
    side = scene.size // CROP
    with torch.inference_mode():
        kept = model.encode_crops(cut_crops(np.asarray(Image.open(file)), CROP))
    shown = {name: split_crops(grid) for name, grid in label(scene).items() if name in WORDS}
    labels = {
        name: grid.gather(1, kept.keep_indices).masked_fill(~kept.valid, -1)
        for name, grid in shown.items()
    }
    things: list[list[Fact]] = [[] for _ in range(side * side)]
    for thing in scene.things:
        things[int(thing.y) // CROP * side + int(thing.x) // CROP].append(fact_of(thing, scene))
    return [
        Crop(
            kept.features[index].clone(),
            {name: grid[index].clone() for name, grid in labels.items()},
            tuple(things[index]),
            scene.land_uses[2 * (2 * (index // side) // side) + 2 * (index % side) // side],
        )
        for index in range(side * side)
    ]


def crop_of(stored: dict[str, Any]) -> Crop:
    """A crop as `asdict` laid it out for its file."""
    return Crop(**stored | {"things": tuple(Fact(**fact) for fact in stored["things"])})


class Bank:
    """Encoded scenes, each a list of crops."""

    def __init__(self, folder: Path) -> None:
        self.scenes: list[list[Crop]] = []
        for path in sorted(folder.glob("*.pt")):
            for scene in torch.load(path, weights_only=True):
                self.scenes.append([crop_of(stored) for stored in scene])

    def compose(self, rng: np.random.Generator, crops: int, most: int) -> tuple[list[Crop], Facts]:
        """Crops of one scene, or of any, with at most so many things where that can be had."""
        whole = [scene for scene in self.scenes if len(scene) == crops]
        if whole and most >= 12 and rng.random() < 0.5:
            chosen = whole[rng.integers(len(whole))]
        else:
            chosen = [self.any_crop(rng) for _ in range(crops)]
            for _ in range(20 * crops):
                counts = [len(crop.things) for crop in chosen]
                if sum(counts) <= most:
                    break
                chosen[int(np.argmax(counts))] = self.any_crop(rng)
        uses = tuple(dict.fromkeys(crop.land_use for crop in chosen))
        return chosen, Facts(tuple(fact for crop in chosen for fact in crop.things), uses)

    def any_crop(self, rng: np.random.Generator) -> Crop:
        scene = self.scenes[rng.integers(len(self.scenes))]
        return scene[rng.integers(len(scene))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("tower", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--first-seed", type=int, default=2_000_000)
    parser.add_argument("--minutes", type=float, default=80, help="to stop after; run it again")
    options = parser.parse_args()

    model = GeoLlavaForConditionalGeneration.from_pretrained(options.tower).eval()
    options.folder.mkdir(parents=True, exist_ok=True)
    seeds = range(options.first_seed, options.first_seed + options.scenes)
    start = time.monotonic()
    for first in range(0, len(seeds), 50):
        path = options.folder / f"{seeds[first]:08d}.pt"
        if path.is_file():
            continue
        if time.monotonic() - start > 60 * options.minutes:
            console.print(f"stopped before {path.name}: run it again to go on")
            return
        part = [
            [asdict(crop) for crop in encode(model, seed)]
            for seed in seeds[first : first + 50]
            if not is_test(seed)
        ]
        partial = path.with_suffix(".partial")
        torch.save(part, partial)
        partial.replace(path)
        console.print(f"{path.name} ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    main()
