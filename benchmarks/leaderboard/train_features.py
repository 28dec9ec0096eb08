"""What the frozen tower makes of the training pictures, once for all seeds, part by part."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.leaderboard.composite import PIXELS, make_composite
from benchmarks.leaderboard.fetch import CACHE
from benchmarks.leaderboard.tower import PATCH, load_tower, pixels_of

SIDE = PIXELS // PATCH
FEATURE_LAYER = -2  # as LLaVA takes it
PART = 50  # pictures that the tower sees at once, and that a file holds


def train_features(pictures: int, folder: Path = CACHE / "train_features") -> Tensor:
    """[pictures, SIDE * SIDE, D] float16, the patches of hidden_states[FEATURE_LAYER].

    What lies in the folder is not computed again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tower = None
    parts = []
    for start in range(0, pictures, PART):
        path = folder / f"{start}.safetensors"
        if not path.exists():
            tower = tower or load_tower(SIDE)
            images = [make_composite("train", start + number).image for number in range(PART)]
            with torch.inference_mode():
                states = tower(pixels_of(images, SIDE), output_hidden_states=True).hidden_states
            partial = path.with_suffix(".partial")
            save_file({"features": states[FEATURE_LAYER][:, 1:].half().contiguous()}, partial)
            partial.replace(path)
        parts.append(load_file(path)["features"])
    return torch.cat(parts)[:pictures]
