"""Questions about several drawn shapes over aerial ground.

A picture of easy-VQA shows one shape on an even ground. Here two to four of them lie on a cut of a
real aerial picture, and all questions have `WORDS` words, so that many are asked in one batch. Of
one seed and number come always the same pixels and questions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.leaderboard.fetch import DEEPFOREST, EASY_VQA, fetched

PIXELS = 140
WORDS, PER_IMAGE = 6, 8
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
PLACES = ("top-left", "top-right", "bottom-left", "bottom-right")
COUNTS = {2: "two", 3: "three", 4: "four"}
KINDS = ("color", "shape", "presence", "place", "count")
SIZE = (28, 44)  # pixels of a shape's longer side, two to three patches
# Ground of one split is never ground of the other.
GROUND = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2.png",),
    "test": (
        "2019_YELL_2_541000_4977000_image_crop.png",
        "OSBS_029.png",
        "SOAP_031.png",
        "SOAP_061.png",
    ),
}
GROUND_CUT = (140, 280)  # pixels of it that become `PIXELS`


@dataclass(frozen=True)
class Question:
    """Words of a question, its one word of answer, and one of `KINDS`."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Thing:
    """A shape in a picture.

    Attributes:
        box: (left, top, right, bottom) in pixels.
    """

    shape: str
    color: str
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def place(self) -> str:
        left, top, right, bottom = self.box
        return PLACES[2 * (top + bottom > PIXELS) + (left + right > PIXELS)]


@dataclass(frozen=True)
class Composite:
    """One picture of `PIXELS` x `PIXELS` and its `PER_IMAGE` questions."""

    image: Image.Image
    things: tuple[Thing, ...]
    questions: tuple[Question, ...]


def make_composite(split: str, number: int, seed: int = 0) -> Composite:
    """
    Args:
        split: "train" or "test": shapes and ground of one are not those of the other.
        number: of the picture.
    """
    if split not in GROUND:
        raise ValueError(f"split must be one of {', '.join(GROUND)}, got {split!r}")
    random = np.random.default_rng([seed, number, split == "test"])
    image = ground(split, random)
    things: list[Thing] = []
    shapes = sources(split)
    wanted = int(random.integers(min(COUNTS), max(COUNTS) + 1))
    while len(things) < wanted:
        shape, color, source = shapes[int(random.integers(len(shapes)))]
        if any(thing.name == f"{color} {shape}" for thing in things):
            continue
        cut = cut_out(source, int(random.integers(*SIZE)))
        box = free_box(cut.size, things, random)
        if box is not None:
            image.paste(cut, box[:2], cut)
            things.append(Thing(shape, color, box))
    return Composite(image, tuple(things), ask(things, random))


def ground(split: str, random: np.random.Generator) -> Image.Image:
    names = GROUND[split]
    picture = ground_picture(names[int(random.integers(len(names)))])
    size = int(random.integers(*GROUND_CUT))
    left = int(random.integers(picture.width - size + 1))
    top = int(random.integers(picture.height - size + 1))
    box = (left, top, left + size, top + size)
    return picture.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC, box=box)


@cache
def ground_picture(name: str) -> Image.Image:
    return Image.open(fetched(DEEPFOREST) / "deepforest/data" / name).convert("RGB")


@cache
def sources(split: str) -> list[tuple[str, str, Path]]:
    """(shape, color, file) of every picture of easy-VQA whose questions name both."""
    folder = fetched(EASY_VQA) / "easy_vqa/data" / split
    named: dict[int, dict[str, str]] = {}
    for _, answer, number in json.loads((folder / "questions.json").read_text()):
        for kind, words in (("shape", SHAPES), ("color", COLORS)):
            if answer in words:
                named.setdefault(number, {})[kind] = answer
    return [
        (found["shape"], found["color"], folder / "images" / f"{number}.png")
        for number, found in sorted(named.items())
        if len(found) == 2
    ]


def cut_out(source: Path, size: int) -> Image.Image:
    """RGBA: the shape without its even ground, its longer side `size` pixels."""
    picture = Image.open(source).convert("RGB")
    pixels = np.asarray(picture).astype(np.int16)
    shown = np.abs(pixels - pixels[0, 0]).sum(2) > 0
    cut = picture.convert("RGBA")
    cut.putalpha(Image.fromarray((255 * shown).astype(np.uint8)))
    cut = cut.crop(cut.getchannel("A").getbbox())
    scale = size / max(cut.size)
    return cut.resize(
        (max(1, round(cut.width * scale)), max(1, round(cut.height * scale))),
        Image.Resampling.NEAREST,
    )


def free_box(
    size: tuple[int, int], things: list[Thing], random: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """A box beside the others whose center is clear of both middle lines, None where it failed."""
    width, height = size
    left = int(random.integers(PIXELS - width + 1))
    top = int(random.integers(PIXELS - height + 1))
    box = (left, top, left + width, top + height)
    margin = PIXELS // 10
    if any(abs(low + high - PIXELS) < margin for low, high in (box[::2], box[1::2])):
        return None
    for thing in things:
        other = thing.box
        if min(box[2], other[2]) > max(left, other[0]) and min(box[3], other[3]) > max(
            top, other[1]
        ):
            return None
    return box


def ask(things: list[Thing], random: np.random.Generator) -> tuple[Question, ...]:
    """One question of the count, four of presence and place, three of what is unique or place."""
    names = [thing.name for thing in things]
    questions = [Question("how many shapes are there ?", COUNTS[len(things)], "count")]
    order = list(random.permutation(len(things)))
    present, placed, *rest = (things[index] for index in [*order, *order])
    # What is missing has the color of a thing, and mostly the shape of another.
    missing = [f"{thing.color} {shape}" for thing in things for shape in SHAPES]
    missing = [name for name in missing if name not in names] or [
        f"{color} {things[0].shape}" for color in COLORS if color != things[0].color
    ]
    absent = missing[int(random.integers(len(missing)))]
    questions += [
        Question(f"is there a {present.name} ?", "yes", "presence"),
        Question(f"is there a {absent} ?", "no", "presence"),
        Question(f"where is the {placed.name} ?", placed.place, "place"),
        Question(f"where is the {rest[0].name} ?", rest[0].place, "place"),
    ]
    unique = [
        Question(f"what color is the {thing.shape} ?", thing.color, "color")
        for thing in things
        if sum(other.shape == thing.shape for other in things) == 1
    ] + [
        Question(f"what shape is the {thing.color} ?", thing.shape, "shape")
        for thing in things
        if sum(other.color == thing.color for other in things) == 1
    ]
    chosen = [unique[index] for index in random.permutation(len(unique))]
    others = [thing for thing in things if thing not in (placed, rest[0])] or [present]
    chosen += [Question(f"where is the {thing.name} ?", thing.place, "place") for thing in others]
    chosen += [Question(f"is there a {name} ?", "no", "presence") for name in missing]
    return tuple([*questions, *chosen][:PER_IMAGE])


def vocabulary() -> list[str]:
    """Every word of questions and answers, in an order that never changes."""
    frames = "how many shapes are there ? is a where the what color shape"
    words = [*frames.split(), *SHAPES, *COLORS, *PLACES, *COUNTS.values(), "yes", "no"]
    return list(dict.fromkeys(words))
