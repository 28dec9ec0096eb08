"""The small model's tower: a patch learns what it shows, from nothing.

    python examples/small_model/tower.py TOWER_FOLDER [--start FOLDER]

There is no pretrained CLIP small enough to ship, so the tower learns on crowded scenes what CLIP
knows from its captions: each patch says what stands on it, its color, the land use. The class token
learns to point at things (the anchor of the selection), the affinity head to let empty ground flow
together. Things are of any size between `SCALES`. A killed or stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import io
import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from parts import CROP, GRID, PATCH, THINGS, WORDS, build, split_crops
from PIL import Image
from running import Run, console, optimizer_of, take_step
from torch import Tensor, nn
from torch.nn import functional

from geollava import GeoLlavaForConditionalGeneration
from geollava.imagery import cut_crops, normalize_crops
from geollava.scenes import Scene
from geollava.scenes.draw import draw
from geollava.scenes.layout import NoRoomError, Planner
from geollava.scenes.scene import (
    COLORS,
    DIRECTIONS,
    KINDS,
    LAND_USES,
    LANDMARKS,
    PURPLE,
    REACH,
    VEHICLES,
)
from tokenprune.ops import background_score

SIDE = 1344  # of the scenes that are learned from: 16 crops
UP, LEFT, HERE = 1, 3, 4  # of the nine neighbors
NUM_PATCHES = 112  # that the tower sees of a crop: steps are five times faster
SCALES = 0.65, 2.1  # of things: a little more than they are asked about in

STATE_FILE = "tower.pt"


def crowd(seed: int, scale: float, fewest: int = 60, most: int = 280) -> Scene:
    """Mostly far more things than a scene that is asked about has."""
    make = Planner(seed, SIDE, scale, attempt=0)
    make.gap = 24 * scale
    scene = Scene(seed, SIDE, scale, tuple(make.choose(LAND_USES, 4)))
    palette = [*COLORS.values(), PURPLE, PURPLE]
    for _ in range(int(make.rng.integers(fewest, most))):
        try:
            spot = make.place()
        except NoRoomError:
            break
        kind = make.choose((*KINDS, *KINDS, *LANDMARKS), 1)[0]
        moving = kind in VEHICLES and make.rng.random() < 0.3
        scene.things.append(make.thing(kind, spot, color=make.choose(palette, 1)[0], moving=moving))
    return scene


def label(scene: Scene) -> dict[str, Tensor]:
    """What each patch is to say: [patches, patches] int64 of the whole scene."""
    patches = scene.size // PATCH
    labels = {name: np.zeros((patches, patches), np.int64) for name in WORDS}
    middle = (np.arange(patches) + 0.5) / patches
    for quarter, use in enumerate(scene.land_uses):
        reach = np.maximum(
            abs(middle[:, None] - 0.25 - 0.5 * (quarter // 2)),
            abs(middle[None] - 0.25 - 0.5 * (quarter % 2)),
        )
        # Where edges are ragged no one is asked.
        labels["land_use"][reach < 0.25] = -100
        labels["land_use"][reach < REACH + 0.04] = 1 + LAND_USES.index(use)
    colors = [*COLORS.values(), PURPLE]
    fires = [thing for thing in scene.things if thing.kind == "fire"]
    pads = [thing for thing in scene.things if thing.kind == "helipad"]
    for thing in scene.things:
        place = int(thing.y // PATCH), int(thing.x // PATCH)
        labels["thing"][place] = 1 + THINGS.index(thing.kind)
        if thing.kind in LANDMARKS:
            continue
        labels["color"][place] = 1 + colors.index(thing.color)
        if thing.kind in VEHICLES:
            labels["moving"][place] = 1 + thing.moving
        near = (math.dist((thing.x, thing.y), (fire.x, fire.y)) for fire in fires)
        labels["beside_fire"][place] = min(near, default=math.inf) < 30 * scene.scale
        for pad in pads:
            across, down = thing.x - pad.x, thing.y - pad.y
            same_crop = all(a // CROP == b // CROP for a, b in ((thing.x, pad.x), (thing.y, pad.y)))
            if same_crop and max(abs(across), abs(down)) < 72 * scene.scale:
                clear = min(abs(across), abs(down)) > max(abs(across), abs(down)) / 2.5
                way = int(np.sign(across)), int(np.sign(down))
                direction = 1 + list(DIRECTIONS.values()).index(way)
                labels["from_helipad"][place] = direction if clear else -100
    labels["parent"] = parents(labels["thing"], labels["land_use"])
    return {name: torch.from_numpy(value) for name, value in labels.items()}


def parents(thing: np.ndarray, land_use: np.ndarray) -> np.ndarray:
    """Which of its nine neighbors a patch is to flow to: things stay, ground goes up, then left.

    Within a crop only, and never onto another land use or a thing.
    """
    parent = np.full(thing.shape, HERE)
    rows, columns = np.indices(thing.shape)
    for direction, axis, index in ((LEFT, 1, columns), (UP, 0, rows)):
        from_thing, from_use = (np.roll(grid, 1, axis) for grid in (thing, land_use))
        open_to = (index % GRID > 0) & (from_thing == 0) & (from_use == land_use)
        parent[open_to] = direction
    parent[thing > 0] = HERE
    return parent


def crowd_of_any_size(seed: int) -> Scene:
    """Of things between `SCALES`, a few of them or many."""
    rng = np.random.default_rng([seed, 7])
    scale = float(np.exp(rng.uniform(*np.log(SCALES))))
    return crowd(seed, scale, fewest=8, most=int(rng.integers(40, 260)))


def make_crops(seed: int, scale: float | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """[16, 3, 336, 336] uint8, and labels [16, 576]; of things of any size by default."""
    scene = crowd_of_any_size(seed) if scale is None else crowd(seed, scale)
    file = io.BytesIO()
    draw(scene, "mixed").save(file, "JPEG", quality=95, subsampling=0)
    crops = cut_crops(np.asarray(Image.open(file)), CROP)

    return crops, {name: split_crops(grid) for name, grid in label(scene).items()}


class Reader(nn.Module):
    """Linear in each token; thrown away when the tower is trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(words)) for name, words in WORDS.items()}
        )

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        tokens = self.norm(tokens)
        return {name: head(tokens) for name, head in self.heads.items()}


def some_patches(things: Tensor, count: int) -> Tensor:
    """[B, count] int64: patches with things, those around them, and any others."""
    grid = (things > 0).float().unflatten(1, (GRID, GRID))[:, None]
    near = functional.max_pool2d(grid, 3, stride=1, padding=1) + grid
    rank = near.flatten(1) + torch.rand(things.shape)
    return rank.topk(count).indices


def encode(
    model: GeoLlavaForConditionalGeneration, crops: Tensor, patches: Tensor | None
) -> Tensor:
    """[B, 1 + n, D]: the tower's output, where it sees no other patches than these."""
    encoder = model.model.vision_tower.encoder
    with torch.autocast("cpu", torch.bfloat16):
        pixels = normalize_crops(crops, model.config.image_mean, model.config.image_std)
        if patches is None:
            return model.model.vision_tower(pixels).float()
        hidden = encoder.pre_layrnorm(encoder.embeddings(pixels))
        places = functional.pad(patches + 1, (1, 0))[..., None].expand(-1, -1, hidden.shape[2])
        hidden = hidden.gather(1, places)
        for layer in encoder.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
    return hidden.float()


def losses(
    model: GeoLlavaForConditionalGeneration,
    reader: Reader,
    crops: Tensor,
    labels: dict[str, Tensor],
    num_patches: int,
) -> dict[str, Tensor]:
    """What is to become small, each a scalar.

    Args:
        num_patches: that the tower sees of a crop.
    """
    patches = some_patches(labels["thing"], num_patches)
    labels = {name: value.gather(1, patches) for name, value in labels.items()}
    hidden = encode(model, crops, patches)
    tokens, cls = hidden[:, 1:], hidden[:, 0]
    things = (labels["thing"] > 0).sum().clamp(min=1)
    out = {}
    for name, logits in reader(tokens).items():
        total = functional.cross_entropy(
            logits.flatten(0, 1), labels[name].flatten(), reduction="sum"
        )
        out[name] = total / (labels[name].numel() if name == "land_use" else things)
    # As in the selection: the class token's query against each token's value.
    anchor = model.model.vision_tower.anchor
    query = functional.linear(cls, anchor.q_proj.weight, anchor.q_proj.bias)
    keys = functional.linear(tokens, anchor.v_proj.weight, anchor.v_proj.bias)
    score = torch.einsum("bd,bnd->bn", query, keys) / math.sqrt(query.shape[1])
    wanted = (labels["thing"] > 0).float()
    total = functional.binary_cross_entropy_with_logits(score, wanted, reduction="sum")
    out["anchor"] = total / things
    return out


def head_loss(
    model: GeoLlavaForConditionalGeneration, crops: Tensor, labels: dict[str, Tensor]
) -> Tensor:
    """How far each patch is from flowing where it should."""
    with torch.no_grad():
        tokens = encode(model, crops, None)[:, 1:]
    head = model.reghead
    weights = head.dw.weight, head.pw.weight, head.pw.bias
    affinity = background_score(tokens, (GRID, GRID), *weights, impl="reference")
    # Rather a patch of ground too many than a thing too few: there is room for 24.
    weight = torch.ones(9).scatter(0, torch.tensor([HERE]), 12.0)
    return functional.cross_entropy(
        affinity.flatten(0, 1), labels["parent"].flatten(), weight=weight
    )


def batches(first: int, size: int, workers: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Crops that are drawn as they are needed, from a seed on; each is seen four times."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        waiting = [pool.submit(make_crops, first + index) for index in range(24)]
        seed, held = first + len(waiting), []
        while True:
            held.append(waiting.pop(0).result())
            waiting.append(pool.submit(make_crops, seed))
            seed += 1
            if len(held) < 8:
                continue
            # A step's crops come from several scenes.
            crops = torch.cat([part for part, _ in held])
            labels = {name: torch.cat([part[name] for _, part in held]) for name in held[0][1]}
            for chosen in torch.cat([torch.randperm(len(crops)) for _ in range(4)]).split(size):
                yield crops[chosen], {name: value[chosen] for name, value in labels.items()}
            held = []


def found(
    model: GeoLlavaForConditionalGeneration,
    reader: Reader,
    crops: Tensor,
    labels: dict[str, Tensor],
) -> dict[str, float]:
    """Shares of right answers where there is something to say, and of things that are kept."""
    with torch.no_grad():
        hidden = model.model.vision_tower(
            normalize_crops(crops, model.config.image_mean, model.config.image_std)
        )
        kept = model.encode_chunk(crops)
        said = {name: logits.argmax(2) for name, logits in reader(hidden[:, 1:]).items()}
    shares = {}
    for name, answers in said.items():
        asked = (
            (labels[name] > 0)
            if name == "land_use"
            else (labels["thing"] > 0) & (labels[name] >= 0)
        )
        shares[name] = (answers == labels[name])[asked].float().mean().item()
    shares["false things"] = ((said["thing"] > 0) & (labels["thing"] == 0)).sum().item() / (
        labels["thing"] > 0
    ).sum().item()
    mask = torch.zeros_like(labels["thing"], dtype=torch.bool)
    mask.scatter_(1, kept.keep_indices, kept.valid)
    shares["things kept"] = mask[labels["thing"] > 0].float().mean().item()
    shares["tokens kept"] = kept.valid.float().sum(1).mean().item()
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=Path, help="a model whose tower and head to go on from")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=80, help="to stop after; run it again")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    processor, model = build()
    if options.start is not None:
        before = GeoLlavaForConditionalGeneration.from_pretrained(options.start)
        model.model.vision_tower.load_state_dict(before.model.vision_tower.state_dict())
        model.reghead.load_state_dict(before.reghead.state_dict())
    reader = Reader(model.config.vision_config.hidden_size)
    learning = nn.ModuleDict({"tower": model.model.vision_tower, "reader": reader})
    run = Run(options.folder / STATE_FILE, learning, options)
    stream = batches(10**6 * (1 + options.seed) + run.step, options.batch_size, options.workers)
    done = run.learn(lambda: losses(model, reader, *next(stream), NUM_PATCHES))
    if done:
        learn_head(model, stream, max(1, options.steps // 10))
        console.print(found(model, reader, *next(stream)))
    stream.close()
    model.save_pretrained(options.folder)
    processor.save_pretrained(options.folder)


def learn_head(
    model: GeoLlavaForConditionalGeneration,
    stream: Iterator[tuple[Tensor, dict[str, Tensor]]],
    steps: int,
) -> None:
    """The affinity head, which builds on the tower."""
    optimizer, schedule = optimizer_of(list(model.reghead.parameters()), steps, 3e-3)
    start = time.perf_counter()
    for step in range(steps):
        take_step(optimizer, schedule, {"parent": head_loss(model, *next(stream))}, step, start)


if __name__ == "__main__":
    main()
