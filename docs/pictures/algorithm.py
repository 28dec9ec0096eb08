"""`background_anchored` step by step on one crop: `_generated/algorithm/STEP.jpg`.

Every picture is made of what the operators return for the shipped model's own weights.
"""

from __future__ import annotations

import colorsys
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import sample
from geollava.model.configuration import OWN_METHOD
from tokenprune import ReducedTokens, ops

ROWS, COLS = sample.GRID
CELL = sample.CELL
WEAK, STRONG = np.array((28.0, 32.0, 48.0)), np.array(sample.KEPT_COLOR, dtype=float)


class Steps(NamedTuple):
    """What the operators made of the crop.

    Attributes:
        weights: [N, 9], the softmax over neighbors.
        parents, roots: [N] int64.
        scores: [N], what the class token thinks of each token's cluster.
        kept: the result.
    """

    weights: Tensor
    parents: Tensor
    roots: Tensor
    scores: Tensor
    kept: ReducedTokens


@torch.no_grad()
def steps() -> Steps:
    session = sample.session()
    model, processor = session.model, session.processor
    pixels = processor(images=[sample.crop()], text=processor.build_prompt("?"))["pixel_values"]
    tower = model.model.vision_tower
    states = tower(model.prepare_pixels(pixels))
    features, cls = states[:, 1:], states[:, 0]
    head = ops.AffinityHead(model.reghead.dw.weight, model.reghead.pw.weight, model.reghead.pw.bias)
    attention = tower.anchor
    anchor = ops.Anchor(
        attention.q_proj.weight,
        attention.q_proj.bias,
        attention.v_proj.weight,
        attention.v_proj.bias,
    )
    logits = ops.background_score(features, sample.GRID, head)
    roots = ops.background_merge(logits, sample.GRID)
    every = ops.anchored_select(features, cls, roots, anchor, ROWS * COLS)
    scores = torch.full((ROWS * COLS,), -math.inf)
    scores[every.keep_indices[0]] = every.scores[0]
    kept = ops.anchored_select(features, cls, roots, anchor, sample.NUM_KEEP)
    given = sample.reduced(OWN_METHOD)
    assert torch.equal(given.keep_indices[given.valid], kept.keep_indices[kept.valid])
    return Steps(
        logits[0].softmax(1),
        ops.background_merge(logits, sample.GRID, max_iters=0)[0],  # not followed
        roots[0],
        scores[roots[0]],
        kept,
    )


def draw(folder: Path) -> None:
    (folder / "algorithm").mkdir(exist_ok=True)
    made = steps()
    colors = cluster_colors(made.roots)
    pictures = {
        "affinity": (
            (sample.enlarged(), "the crop"),
            (heat(made.weights[:, 4]), "a token's weight for itself"),
        ),
        "pointers": (
            (arrows(made.parents), "strongest neighbor"),
            (zoomed(arrows(made.parents)), "the same, closer"),
        ),
        "clusters": (
            (marked(sample.enlarged(), made.roots), "roots (dots)"),
            (tinted(colors), "clusters, by their roots"),
        ),
        "selection": (
            (heat(ranks(made.scores)), "each token's cluster, by score"),
            (sample.overlay(made.kept), sample.legend(made.kept, merges=True)),
        ),
    }
    for name, panels in pictures.items():
        sample.side_by_side(*panels).save(folder / "algorithm" / f"{name}.jpg", quality=88)


def heat(values: Tensor) -> Image.Image:
    """[N] as light, the least dark and the largest bright."""
    share = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-6)
    cells = WEAK + share.view(ROWS, COLS, 1).numpy() * (STRONG - WEAK)
    return Image.fromarray(cells.astype(np.uint8).repeat(CELL, 0).repeat(CELL, 1))


def ranks(values: Tensor) -> Tensor:
    """[N]: how many different values lie below each."""
    return values.unique(return_inverse=True)[1].float()


def center(token: int) -> tuple[float, float]:
    row, col = divmod(token, COLS)
    return (col + 0.5) * CELL, (row + 0.5) * CELL


def arrows(parents: Tensor) -> Image.Image:
    """A line with a head from each token to its strongest neighbor; a dot where it is itself."""
    picture = Image.blend(sample.enlarged(), Image.new("RGB", (COLS * CELL, ROWS * CELL)), 0.55)
    pen = ImageDraw.Draw(picture)
    for token, parent in enumerate(parents.tolist()):
        x, y = center(token)
        if parent == token:
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=sample.KEPT_COLOR)
            continue
        to_x, to_y = center(parent)
        angle = math.atan2(to_y - y, to_x - x)
        tip = x + 0.75 * (to_x - x), y + 0.75 * (to_y - y)
        pen.line((x, y, *tip), fill=sample.INK, width=2)
        for turn in (2.6, -2.6):
            end = tip[0] + 7 * math.cos(angle + turn), tip[1] + 7 * math.sin(angle + turn)
            pen.line((*tip, *end), fill=sample.INK, width=2)
    return picture


def zoomed(picture: Image.Image) -> Image.Image:
    """The middle third, three times as large."""
    left, top = 9 * CELL, 7 * CELL
    part = picture.crop((left, top, left + 8 * CELL, top + 8 * CELL))
    return part.resize(picture.size, Image.Resampling.LANCZOS)


def cluster_colors(roots: Tensor) -> np.ndarray:
    """[N, 3]: a color for each cluster of several tokens, the larger the grayer; white alone."""
    colors = np.full((len(roots), 3), 255.0)
    sizes = torch.bincount(roots, minlength=len(roots))
    for number, root in enumerate(sizes.argsort(descending=True, stable=True).tolist()):
        if sizes[root] < 2:
            break
        hue = number * 0.381966 % 1  # the golden angle keeps neighbors in the list apart
        colors[roots.numpy() == root] = 255 * np.array(colorsys.hsv_to_rgb(hue, 0.6, 0.95))
    return colors


def tinted(colors: np.ndarray) -> Image.Image:
    cells = colors.reshape(ROWS, COLS, 3).astype(np.uint8).repeat(CELL, 0).repeat(CELL, 1)
    return Image.blend(sample.enlarged(), Image.fromarray(cells), 0.5)


def marked(picture: Image.Image, roots: Tensor) -> Image.Image:
    """A dot on each root, as large as its cluster is."""
    pen = ImageDraw.Draw(picture)
    sizes = torch.bincount(roots, minlength=len(roots))
    for root in sizes.nonzero()[:, 0].tolist():
        x, y = center(root)
        radius = min(4 + math.sqrt(int(sizes[root])), CELL / 1.5)
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=sample.KEPT_COLOR, outline=sample.PAPER, width=2)
    return picture
