"""The crop that pictures are drawn over, and what the shipped model and a method make of it.

One crop, one budget, one question for all, so that pictures compare.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import tokenprune
from geollava import Session
from geollava.answering.overlay import KEPT_COLOR, LEFT_OUT_LIGHT, MERGED_LIGHT
from geollava.model.configuration import NO_REDUCTION
from geollava.model.token_reduction import crop_methods, host_methods
from geollava.scenes import plan
from geollava.scenes.draw import draw
from tokenprune import ReducedTokens

SEED, SIZE, SCALE = 20, 672, 1.3  # of the scene; things have the size that the model was trained on
CORNER, CROP = (60, 300), 336
GRID = (24, 24)
NUM_KEEP = 24
QUESTION = "What is the color of the object beside the fire?"
CELL = 28  # pixels of a picture per token
INK, PAPER = (235, 235, 235), (16, 16, 16)


@cache
def crop() -> Image.Image:
    left, top = CORNER
    scene = draw(plan(SEED, SIZE, SCALE), "procedural")
    return scene.crop((left, top, left + CROP, top + CROP))


@cache
def session() -> Session:
    """Of the shipped model, with one crop to an image."""
    loaded = Session(device="cpu")
    loaded.processor.image_processor.image_grid_pinpoints = [[CROP, CROP]]
    return loaded


def can_reduce(name: str) -> bool:
    """Whether the shipped model hands over what a method needs."""
    return name in (*crop_methods(), *host_methods())


def reduced(name: str) -> ReducedTokens:
    """The crop's 576 tokens reduced to the budget by a method with its defaults."""
    if name in crop_methods():
        session().reduce(name, NUM_KEEP)
        return session().see(crop()).encode()[0].kept
    return reduced_for_the_question(name)


@torch.no_grad()
def reduced_for_the_question(name: str) -> ReducedTokens:
    """By a method that reads the question, in the model that keeps all tokens before it."""
    model, processor = session().model, session().processor
    before = model.config.reduction_method, model.config.num_keep, processor.num_keep
    count = GRID[0] * GRID[1]
    model.config.reduction_method, model.config.num_keep = NO_REDUCTION, count
    processor.num_keep = count
    try:
        inputs = processor(images=[crop()], text=processor.build_prompt(QUESTION))
        with tokenprune.apply(model, name, num_keep=NUM_KEEP) as handle:
            model(**inputs)
            last = handle.last
    finally:
        model.config.reduction_method, model.config.num_keep, processor.num_keep = before
    assert isinstance(last, ReducedTokens)
    return last


# -- drawing --------------------------------------------------------------------------------------


def enlarged() -> Image.Image:
    return crop().resize((CELL * GRID[1], CELL * GRID[0]), Image.Resampling.LANCZOS)


def flags(result: ReducedTokens) -> tuple[np.ndarray, np.ndarray]:
    """[rows, cols] bool each: the kept tokens or roots, and all that are averaged into them."""
    roots = torch.zeros(result.assignment.shape, dtype=torch.bool)
    roots.scatter_(1, result.keep_indices, result.valid)
    members = roots.gather(1, result.assignment)
    return roots[0].view(GRID).numpy(), members[0].view(GRID).numpy()


def overlay(result: ReducedTokens) -> Image.Image:
    """Kept tokens bright and framed, what is merged into them pale and outlined, the rest dark."""
    roots, members = flags(result)
    pixels = np.asarray(enlarged()).astype(np.float32)
    gray = pixels.mean(axis=2, keepdims=True)

    def light(cells: np.ndarray) -> np.ndarray:
        return cells.repeat(CELL, 0).repeat(CELL, 1)[..., None]

    pixels = np.where(light(roots), pixels, MERGED_LIGHT * (pixels + gray) / 2)
    pixels = np.where(light(members), pixels, LEFT_OUT_LIGHT * gray)
    picture = Image.fromarray(pixels.astype(np.uint8))
    outline_clusters(picture, result.assignment[0].view(GRID).numpy(), members)
    pen = ImageDraw.Draw(picture)
    for row, col in np.argwhere(roots).tolist():
        box = (col * CELL, row * CELL, (col + 1) * CELL - 1, (row + 1) * CELL - 1)
        pen.rectangle(box, outline=KEPT_COLOR, width=3)
    return picture


def outline_clusters(picture: Image.Image, assignment: np.ndarray, members: np.ndarray) -> None:
    """A line between neighbors of different clusters, where either is part of the result."""
    pen = ImageDraw.Draw(picture)
    named = np.where(members, assignment, -1)
    # Where nothing is merged every member is kept, and has its frame.
    for row, col in np.argwhere(named[:, 1:] != named[:, :-1]).tolist():
        x = (col + 1) * CELL
        pen.line((x, row * CELL, x, (row + 1) * CELL), fill=INK, width=1)
    for row, col in np.argwhere(named[1:] != named[:-1]).tolist():
        y = (row + 1) * CELL
        pen.line((col * CELL, y, (col + 1) * CELL, y), fill=INK, width=1)


def side_by_side(*panels: tuple[Image.Image, str], gap: int = 16) -> Image.Image:
    """Pictures of one size in a row, each with a line of text below."""
    font = ImageFont.load_default(26)
    width, height = panels[0][0].size
    line = 48
    sheet = Image.new("RGB", (len(panels) * (width + gap) - gap, height + line), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (picture, text) in enumerate(panels):
        left = number * (width + gap)
        sheet.paste(picture, (left, 0))
        pen.text((left + 8, height + line // 2), text, font=font, fill=INK, anchor="lm")
    return sheet


def legend(result: ReducedTokens, *, merges: bool) -> str:
    roots, members = flags(result)
    kept, joined = int(roots.sum()), int(members.sum())
    if merges:
        return f"{kept} slots (framed): means of {joined} of {roots.size} tokens (pale)"
    return f"{kept} of {roots.size} tokens kept (framed)"
