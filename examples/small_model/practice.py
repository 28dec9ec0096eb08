"""The joined model practices on scenes that are never drawn, as many as it takes.

    python examples/small_model/practice.py START_FOLDER WORDS_FOLDER SCENES_FOLDER PRACTICED_FOLDER

Its visual tokens are words once more, but each is as far off as a real one that shows the same: the
projector's errors on the scenes that `geollava scenes` wrote are drawn again at random. Real scenes
are so few that the language model would learn them by heart.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from join import kept_tokens
from parts import CROP, Wording, split_crops
from safetensors.torch import load_file
from torch import Tensor
from tower import label
from words import SCALE, WORDING_FILE, Turn, teach, turns_of

from geollava import GeoLlavaForConditionalGeneration, GeoLlavaProcessor
from geollava.scenes import Scene, plan, training_row
from geollava.training.packs import join
from geollava.training.rows import turns_in
from geollava.training.tokens import sample_of, tokenize

SIZES, SHARES = (672, 1008, 1344), (0.3, 0.3, 0.4)
KEPT = 0.95  # of the things
GROUND = 0.2  # of the other slots are filled, at most
# Of the tokens of the ground; the others show things whose middle is elsewhere.
NEAR = 0.9


class Errors:
    """What real tokens say beside the words for what they show, by thing and color."""

    def __init__(self, said: Tensor, wanted: Tensor, labels: dict[str, Tensor]) -> None:
        off = said - wanted
        is_thing, far = labels["thing"] > 0, off.square().sum(1)
        near = is_thing | (far <= far[~is_thing].quantile(NEAR))
        self.off = off[near]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        pairs = zip(labels["thing"][near].tolist(), labels["color"][near].tolist(), strict=True)
        for index, pair in enumerate(pairs):
            groups[pair].append(index)
        self.groups = {pair: np.array(members) for pair, members in groups.items()}
        self.all = np.arange(len(self.off))

    def draw(self, thing: Tensor, color: Tensor, rng: np.random.Generator) -> Tensor:
        """[...] labels -> [..., text width]"""
        pairs = zip(thing.flatten().tolist(), color.flatten().tolist(), strict=True)
        chosen = [rng.choice(self.groups.get(pair, self.all)) for pair in pairs]
        return self.off[chosen].unflatten(0, thing.shape)


def visual_tokens(
    scene: Scene, num_keep: int, wording: Wording, errors: Errors, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """([crops * num_keep, text width], [crops * num_keep] bool: not an empty slot)."""
    labels = {name: split_crops(grid) for name, grid in label(scene).items()}
    is_thing = labels["thing"] > 0
    chance = torch.from_numpy(rng.random(is_thing.shape))
    filled = GROUND * torch.from_numpy(rng.random((len(chance), 1))) * num_keep / chance.shape[1]
    kept = torch.where(is_thing, chance < KEPT, chance < filled)
    order = (kept + 0.5 * chance * is_thing).topk(num_keep, dim=1).indices.sort(1).values
    shown = {name: grid.gather(1, order) for name, grid in labels.items()}
    tokens = wording(shown) + errors.draw(shown["thing"], shown["color"], rng)
    return tokens.flatten(0, 1), kept.gather(1, order).flatten()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("start", "words", "scenes", "practiced"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=2, help="scenes of a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    model = GeoLlavaForConditionalGeneration.from_pretrained(options.start)
    processor = GeoLlavaProcessor.from_pretrained(options.start)
    wording = Wording(load_file(options.words / WORDING_FILE))
    model.eval().requires_grad_(False)
    images = sorted((options.scenes / "images").iterdir())[: options.images]
    features, labels = kept_tokens(model, processor, images)
    errors = Errors(model.project(features[None]), wording(labels), labels)
    empty = model.project(features.new_zeros(1, 1, features.shape[1]))

    for module in (model.model.layers, model.model.norm, model.get_input_embeddings()):
        module.requires_grad_(True)
    seeds = itertools.count(7 * 10**6)

    def lesson_at(_: float) -> tuple[dict[str, Any], list[Turn]]:
        samples, seen, turns = [], [], []
        for seed in itertools.islice(seeds, options.rows):
            rng = np.random.default_rng([seed, 4])
            size = int(rng.choice(SIZES, p=SHARES))
            scene = plan(seed, size, SCALE)
            row = training_row(scene, "", int(rng.integers(8)), choices=False)["conversations"]
            said = tokenize(processor, turns_in(row))
            kept = (size // CROP) ** 2 * processor.num_keep
            samples.append(sample_of(said, processor.image_token_id, [kept]))
            tokens, filled = visual_tokens(scene, processor.num_keep, wording, errors, rng)
            seen.append(torch.where(filled[:, None], tokens, empty))
            turns += turns_of(row)
        return join(samples) | {"image_features": torch.cat(seen)}, turns

    def save() -> None:
        model.save_pretrained(options.practiced)
        processor.save_pretrained(options.practiced)

    teach(model, lesson_at, options.steps, options.learning_rate, save)


if __name__ == "__main__":
    main()
