"""The small model's language model: first lessons, in words.

    python examples/small_model/words.py WORDS_FOLDER

A scene's kept tokens are stood in for by sums of word embeddings ("car" + "red" + "desert"), so
that no pixel need be drawn: the language model finds out how questions are answered before it sees
an image. Scenes begin with up to four things and grow with what it answers right: with twenty from
the start it had not begun to look anything up after a thousand steps, with four it had after 300.
`images.py` then teaches the projector to speak in the same words.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from lessons import lesson
from parts import CROP, GRID, PATCH, THINGS, Wording, build
from safetensors.torch import load_file, save_file
from teaching import STATE_FILE, Teacher, add_options
from torch import Tensor

from geollava import GeoLlavaForConditionalGeneration, GeoLlavaProcessor
from geollava.scenes import Asked, Scene
from geollava.scenes.facts import Fact, fact_of
from geollava.scenes.scene import COLOR_NAMES, DIRECTIONS, LAND_USES

WORDING_FILE = "wording.safetensors"
NOISE = 0.5  # of a token, relative to a word
LOST = 0.02  # of the things are not among the kept tokens
GROUNDS = 6  # tokens of the ground in a crop, at most


def labels_of(fact: Fact) -> dict[str, int]:
    """What a thing's token is to say, as `tower.label` numbers it."""
    return {
        "thing": 1 + THINGS.index(fact.kind),
        "color": 0 if fact.color is None else 1 + COLOR_NAMES.index(fact.color),
        "moving": 0 if fact.moving is None else 1 + fact.moving,
        "beside_fire": int(fact.beside_fire),
        "from_helipad": 0 if fact.direction is None else 1 + list(DIRECTIONS).index(fact.direction),
        "land_use": 0 if fact.land_use is None else 1 + LAND_USES.index(fact.land_use),
    }


def visual_tokens(
    scene: Scene, wording: Wording, num_keep: int, rng: np.random.Generator
) -> Tensor:
    """[crops * num_keep, text width]: things at their places, some ground, and empty slots."""
    side = scene.size // CROP
    ground = dict.fromkeys(wording.tables, 0)
    crops: list[list[tuple[int, dict[str, int]]]] = [[] for _ in range(side * side)]
    for thing in scene.things:
        if rng.random() < LOST:
            continue
        row, column = int(thing.y) // CROP, int(thing.x) // CROP
        patch = int(thing.y) % CROP // PATCH * GRID + int(thing.x) % CROP // PATCH
        crops[row * side + column].append((patch, labels_of(fact_of(thing, scene))))
    rows = []
    for crop in crops:
        for _ in range(int(rng.integers(GROUNDS + 1))):
            use = int(rng.integers(1, 1 + len(LAND_USES)))
            crop.append((int(rng.integers(GRID * GRID)), ground | {"land_use": use}))
        said = [label for _, label in sorted(crop, key=lambda one: one[0])][:num_keep]
        if said:
            labels = {name: torch.tensor([one[name] for one in said]) for name in ground}
            tokens = wording(labels)
            tokens = tokens + NOISE * tokens.shape[1] ** -0.5 * torch.randn_like(tokens)
            rows.append(tokens)
        rows.append(torch.zeros(num_keep - len(said), next(iter(wording.tables.values())).shape[1]))
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    add_options(parser, steps=8000, learning_rate=1.5e-3)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    if (options.folder / STATE_FILE).is_file():
        model = GeoLlavaForConditionalGeneration.from_pretrained(options.folder)
        processor = GeoLlavaProcessor.from_pretrained(options.folder)
        wording = Wording(load_file(options.folder / WORDING_FILE))
    else:
        processor, model = build()
        embeddings = model.get_input_embeddings().weight.detach().clone()
        wording = Wording.of(embeddings, processor.tokenizer)
        options.folder.mkdir(parents=True, exist_ok=True)
        save_file(wording.tables, options.folder / WORDING_FILE)

    def make(
        seed: int, size: int, most: int, letters: float, rng: np.random.Generator
    ) -> tuple[Tensor, list[Asked]]:
        planned = lesson(seed, size, most, letters)
        return visual_tokens(planned.scene, wording, processor.num_keep, rng), planned.asked

    language_model = [model.model.layers, model.model.norm, model.get_input_embeddings()]
    Teacher(options.folder, model, processor, language_model, options, make).run()


if __name__ == "__main__":
    main()
