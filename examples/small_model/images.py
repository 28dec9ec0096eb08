"""Tower and language model become one, on images.

    python examples/small_model/images.py TOWER_FOLDER WORDS_FOLDER BANK_FOLDER MODEL_FOLDER

First the projector learns to say in words what a token shows (`JOIN` steps), then projector and
language model learn together from the crops of the bank, put together anew for every lesson.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from bank import Bank
from lessons import ask_enough
from parts import CROP, WORDS, Wording
from running import console
from safetensors.torch import load_file
from teaching import STATE_FILE, Teacher, add_options
from torch import Tensor
from torch.nn import functional
from words import WORDING_FILE

from geollava import GeoLlavaForConditionalGeneration, GeoLlavaProcessor
from geollava.scenes import Asked

JOIN = 2000  # steps of the projector alone


def join(model: GeoLlavaForConditionalGeneration, bank: Bank, wording: Wording, steps: int) -> None:
    """The projector learns the words of tokens: of things as often as of the ground."""
    crops = [crop for scene in bank.scenes for crop in scene]
    features = torch.cat([crop.features for crop in crops])
    labels = {name: torch.cat([crop.labels[name] for crop in crops]) for name in WORDS}
    filled = labels["thing"] >= 0
    features, labels = features[filled], {name: grid[filled] for name, grid in labels.items()}
    wanted = wording(labels)
    projector = model.model.mm_projector.requires_grad_(True)
    with torch.no_grad():
        projector[0].weight /= features.std()
    is_thing = labels["thing"] > 0
    chances = torch.where(is_thing, 1 / is_thing.sum(), 1 / (~is_thing).sum())
    optimizer = torch.optim.AdamW(projector.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, max(steps, 1))
    for step in range(steps):
        chosen = torch.multinomial(chances, 512, replacement=True)
        loss = functional.mse_loss(projector(features[chosen]), wanted[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            console.print(f"{step}: {loss.item():.4f} of {wanted[is_thing].var():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("tower", "words", "bank", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--join-steps", type=int, default=JOIN)
    add_options(parser, steps=6000, learning_rate=8e-4)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    bank = Bank(options.bank)
    begun = (options.folder / STATE_FILE).is_file()
    start = options.folder if begun else options.words
    model = GeoLlavaForConditionalGeneration.from_pretrained(start)
    processor = GeoLlavaProcessor.from_pretrained(start)
    if not begun:
        tower = GeoLlavaForConditionalGeneration.from_pretrained(options.tower)
        model.model.vision_tower.load_state_dict(tower.model.vision_tower.state_dict())
        model.reghead.load_state_dict(tower.reghead.state_dict())
        join(model, bank, Wording(load_file(options.words / WORDING_FILE)), options.join_steps)
        model.config.untrained = False

    def make(
        seed: int, size: int, most: int, letters: float, rng: np.random.Generator
    ) -> tuple[Tensor, list[Asked]]:
        crops, facts = bank.compose(rng, (size // CROP) ** 2, most)
        visual = model.project(torch.stack([crop.features for crop in crops]))
        return visual, ask_enough(facts, rng, letters)

    learning = [
        model.model.mm_projector,
        model.model.layers,
        model.model.norm,
        model.get_input_embeddings(),
    ]
    Teacher(options.folder, model, processor, learning, options, make).run()


if __name__ == "__main__":
    main()
