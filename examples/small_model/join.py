"""Tower and language model become one: the projector learns to say in words what a token shows.

    python examples/small_model/join.py TOWER_FOLDER WORDS_FOLDER SCENES_FOLDER START_FOLDER

SCENES_FOLDER is what `geollava scenes` wrote; what its patches show is known from the plans.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from parts import GRID, WORDS, Wording, split_crops
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from tower import label
from words import WORDING_FILE

from geollava import GeoLlavaForConditionalGeneration, GeoLlavaProcessor
from geollava.scenes import plan

console = Console(stderr=True, highlight=False)


def kept_tokens(
    model: GeoLlavaForConditionalGeneration, processor: GeoLlavaProcessor, images: list[Path]
) -> tuple[Tensor, dict[str, Tensor]]:
    """[T, D] kept tokens of all images, and what each of them shows; empty slots left out."""
    features, labels = [], []
    for path in track(images, "images", console=console):
        seed, size, scale = path.stem.split("-")[:3]
        shown = label(plan(int(seed), int(size), float(scale)))
        with torch.inference_mode():
            kept = model.encode_crops(processor.image_processor([path])["pixel_values"])
        features.append(kept.features[kept.valid])
        labels.append(
            {
                name: split_crops(shown[name]).gather(1, kept.keep_indices)[kept.valid]
                for name in WORDS
            }
        )
    joined = {name: torch.cat([part[name] for part in labels]) for name in WORDS}
    return torch.cat(features).clone(), joined


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("tower", "words", "scenes", "start"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    model = GeoLlavaForConditionalGeneration.from_pretrained(options.words)
    processor = GeoLlavaProcessor.from_pretrained(options.words)
    tower = GeoLlavaForConditionalGeneration.from_pretrained(options.tower)
    model.model.vision_tower.load_state_dict(tower.model.vision_tower.state_dict())
    model.reghead.load_state_dict(tower.reghead.state_dict())
    model.eval().requires_grad_(False)

    images = sorted((options.scenes / "images").glob("*.jpg"))[: options.images]
    features, labels = kept_tokens(model, processor, images)
    wanted = Wording(load_file(options.words / WORDING_FILE))(labels)
    projector = model.model.mm_projector.requires_grad_(True)
    with torch.no_grad():
        projector[0].weight /= features.std()
    # Things are few among the kept tokens of a scene; a batch has as many of them as of the ground.
    weight = torch.ones(len(features))
    is_thing = labels["thing"] > 0
    weight[is_thing] = (~is_thing).sum() / is_thing.sum()
    console.print(f"{len(features):,} tokens, {int(is_thing.sum()):,} things, grid {GRID} x {GRID}")
    optimizer = torch.optim.AdamW(projector.parameters(), 3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, options.steps, cycle_momentum=False
    )
    for step in range(1, options.steps + 1):
        chosen = weight.multinomial(512, replacement=True)
        # An empty slot is a token of zeros, and says nothing.
        said = projector(torch.cat([features[chosen], features.new_zeros(16, features.shape[1])]))
        target = torch.cat([wanted[chosen], wanted.new_zeros(16, wanted.shape[1])])
        loss = functional.mse_loss(said, target, reduction="sum") / len(target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            console.print(f"{step}: squared distance {loss.item():.3f} (a word has 1)")
    model.save_pretrained(options.start)
    processor.save_pretrained(options.start)


if __name__ == "__main__":
    main()
