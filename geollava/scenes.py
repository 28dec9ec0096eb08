"""Very large scenes whose every object is known, with questions in the families of XLRS-Bench.

A scene is planned first (what stands where, which questions are asked), then drawn by
`scene_drawing`. Answers are drawn by lot before the scene is laid out, evenly over the choices that
the question lists: whoever does not look at the image is right by chance alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "white": (240, 240, 235),
    "red": (205, 40, 35),
    "blue": (40, 75, 205),
    "yellow": (235, 205, 45),
    "cyan": (70, 205, 215),
}
TARGET_COLOR: Color = (175, 50, 190)  # purple: what a question calls by its color alone
KINDS = ("car", "truck", "airplane", "ship", "storage tank")
VEHICLES = ("car", "truck", "airplane", "ship")
LAND_USES = ("water", "forest", "farmland", "residential area", "desert")
PARTS = ("upper left", "upper right", "lower left", "lower right")
DIRECTIONS = {
    "north-west": (-1, -1),
    "north-east": (1, -1),
    "south-west": (-1, 1),
    "south-east": (1, 1),
}
# The benchmark's own words, so that the same scoring serves.
CHOICES_FOLLOW = "The choices are listed below:\n"
INSTRUCTION = (
    "\n\nSelect the best answer for the multiple-choice question based on the image. Only respond "
    "with the letter corresponding to the correct answer (A, B, C, D).\nThe answer is:"
)
TEST_EVERY = 5  # one scene in so many is for testing


@dataclass(frozen=True)
class Thing:
    """An object: kind, color, center in pixels, heading in radians, and whether it moves."""

    kind: str
    color: Color
    x: float
    y: float
    heading: float
    moving: bool = False


@dataclass(frozen=True)
class Question:
    """A question, its choices and the index of the right one."""

    category: str
    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass
class Scene:
    """All that is to be seen in a scene, and asked about it.

    Attributes:
        land_uses: of the four parts, in the order of `PARTS`.
        pad: center of the helipad in pixels. smoke: of the fire.
    """

    seed: int
    size: int
    scale: float
    land_uses: tuple[str, ...]
    pad: tuple[float, float]
    smoke: tuple[float, float]
    things: list[Thing] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


class Planner:
    """Places things apart from each other and writes questions down.

    Args:
        seed: of the scene. size: side in pixels. scale: of the objects; 1 is a car of 6 x 3 pixels.
    """

    def __init__(self, seed: int, size: int, scale: float) -> None:
        self.rng = np.random.default_rng([seed, size])
        self.taken: list[tuple[float, float]] = []
        self.gap = 60 * scale  # so that a box around one thing holds no other
        self.margin = 40 * scale
        self.size = size

    def place(
        self, accept: Callable[[float, float], bool] = lambda x, y: True
    ) -> tuple[float, float]:
        """A free spot that is accepted."""
        for _ in range(10_000):
            x, y = self.rng.uniform(self.margin, self.size - self.margin, 2)
            if accept(x, y) and all(math.hypot(x - a, y - b) > self.gap for a, b in self.taken):
                self.taken.append((x, y))
                return float(x), float(y)
        raise ValueError(f"a scene of {self.size} pixels is too small for its objects")

    def thing(self, kind: str, spot: tuple[float, float], **more: Any) -> Thing:
        color = list(COLORS.values())[self.rng.integers(len(COLORS))]
        heading = float(self.rng.uniform(0, 2 * math.pi))
        return Thing(kind, more.pop("color", color), *spot, heading, **more)

    def choose(self, options: Any, count: int) -> list[Any]:
        """So many of the options, each once, in random order."""
        options = list(options)
        return [options[index] for index in self.rng.permutation(len(options))[:count]]

    def box(self, spot: tuple[float, float], half: float) -> list[int]:
        """[x1, y1, x2, y2] around a spot, which is not at its center."""
        x, y = spot + self.rng.uniform(-0.3, 0.3, 2) * half
        corners = (x - half, y - half, x + half, y + half)
        return [round(min(max(value, 0), self.size)) for value in corners]


def plan(seed: int, size: int = 8064, scale: float = 1.0) -> Scene:
    """A scene with a question of each family, the same for the same arguments.

    Args:
        size: side of the square scene in pixels.
        scale: size of the objects; at 1 a car has 6 x 3 pixels, an airplane 18 x 18.

    Raises:
        ValueError: too small for its objects.
    """
    if not (0 < scale < math.inf and size >= 1024 * scale):
        raise ValueError(
            f"size must be at least 1,024 pixels times the objects' scale, got {size} for {scale}"
        )
    make = Planner(seed, size, scale)
    # Of these kinds the first two are counted, and nothing else that is asked for is one of them
    # where it would count.
    counted, regional, *others = make.choose(KINDS, len(KINDS))
    corner = make.rng.uniform(0.1, 0.6, 2) * size
    region = [round(value) for value in (*corner, *(corner + 0.3 * size))]

    part = make.rng.integers(4)
    smoke = make.place(lambda x, y: part_of(x, y, size) == part)
    pad = make.place(lambda x, y: max(abs(x - size / 2), abs(y - size / 2)) < size / 6)
    scene = Scene(seed, size, scale, tuple(make.choose(LAND_USES, 4)), pad, smoke)

    def away(x: float, y: float) -> bool:
        return not within(x, y, region, margin=12 * scale)

    def ask(category: str, text: str, choices: Sequence[Any], answer: Any) -> None:
        words = tuple(str(choice) for choice in choices)
        scene.questions.append(Question(category, text, words, words.index(str(answer))))

    def point_at(choices: Sequence[str], kind: str | None = None, **more: Any) -> tuple[Any, Any]:
        """Puts a thing somewhere -> (which of the choices it is, its box)."""
        answer, spot = choices[int(make.rng.integers(len(choices)))], make.place(away)
        if "color" in more:
            more["color"] = COLORS[answer]
        if "moving" in more:
            more["moving"] = answer == "moving"
        scene.things.append(make.thing(kind or answer, spot, **more))
        return answer, make.box(spot, 24 * scale)

    # Four neighboring numbers, the true one evenly among them.
    numbers = range(start := make.rng.integers(0, 9), start + 4)
    count = make.rng.choice(numbers)
    scene.things += [make.thing(counted, make.place()) for _ in range(count)]
    ask("Counting/Overall counting", f"How many {counted}s are in the image?", numbers, count)

    numbers = range(start := make.rng.integers(0, 5), start + 4)
    count, decoys = make.rng.choice(numbers), make.rng.integers(0, 6)
    inside = [make.place(lambda x, y: within(x, y, region, -12 * scale)) for _ in range(count)]
    spots = inside + [make.place(away) for _ in range(decoys)]
    scene.things += [make.thing(regional, spot) for spot in spots]
    text = f"How many {regional}s are in the region {region}?"
    ask("Counting/Regional counting", text, numbers, count)

    kinds = make.choose([regional, *others], 4)
    answer, box = point_at(kinds)
    text = f"What is the object in {box}?"
    ask("Object properties/Object classification", text, kinds, answer)

    colors, kind = make.choose(COLORS, 4), make.choose(others, 1)[0]
    answer, box = point_at(colors, kind, color=None)
    text = f"What is the color of the {kind} in {box}?"
    ask("Object properties/Object color", text, colors, answer)

    states = make.choose(("moving", "standing still"), 2)
    kind = make.choose([kind for kind in others if kind in VEHICLES], 1)[0]
    answer, box = point_at(states, kind, moving=None)
    text = f"Is the {kind} in {box} moving or standing still?"
    ask("Object properties/Object motion state", text, states, answer)

    directions, kind = make.choose(DIRECTIONS, 4), make.choose(others, 1)[0]
    answer = directions[make.rng.integers(4)]
    right, down = DIRECTIONS[answer]

    def that_way(x: float, y: float) -> bool:
        across, along = (x - pad[0]) * right, (y - pad[1]) * down
        return size / 20 < min(across, along) and max(across, along) < 2 * min(across, along)

    scene.things.append(make.thing(kind, make.place(that_way), color=TARGET_COLOR))
    text = f"Seen from the helipad, in which direction is the purple {kind}?"
    ask("Object spatial relationship/Object spatial relationship", text, directions, answer)

    asked = make.rng.integers(4)
    answer = scene.land_uses[asked]
    wrong = make.choose([use for use in LAND_USES if use != answer], 3)
    text = f"What is the main land use in the {PARTS[asked]} part of the image?"
    uses = make.choose([answer, *wrong], 4)
    ask("Land use classification/Regional Land use classification", text, uses, answer)

    text = "In which part of the image does something burn?"
    parts = make.choose(PARTS, 4)
    ask("Complex reasoning/Anomaly Detection and Interpretation", text, parts, PARTS[part])
    return scene


def within(x: float, y: float, box: Sequence[float], margin: float) -> bool:
    """Whether a spot lies in a box that is wider by a margin on each side."""
    left, top, right, bottom = box
    return left - margin < x < right + margin and top - margin < y < bottom + margin


def part_of(x: float, y: float, size: int) -> int | None:
    """The part (index into `PARTS`) that a spot clearly lies in, None near the middle lines."""
    if min(abs(x - size / 2), abs(y - size / 2)) < size / 16:
        return None
    return 2 * (y > size / 2) + (x > size / 2)


def is_test(seed: int) -> bool:
    """Whether a scene is kept for testing: no scene is in both parts."""
    return seed % TEST_EVERY == 0


def rows_of(scene: Scene, image: str) -> list[dict[str, Any]]:
    """A scene's questions as training rows, with the columns of XLRS-Bench-lite beside them."""
    rows = []
    for index, question in enumerate(scene.questions):
        options = [f"({chr(65 + i)}) {choice}" for i, choice in enumerate(question.choices)]
        letter = chr(65 + question.answer)
        prompt = question.text + CHOICES_FOLLOW + "\n".join(options) + INSTRUCTION
        rows.append(
            {
                "id": f"scene-{scene.seed}-{index}",
                "image": [image],
                "conversations": [
                    {"from": "human", "value": f"<image>\n{prompt}"},
                    {"from": "gpt", "value": letter},
                ],
                "index": scene.seed * len(scene.questions) + index,
                "question": question.text,
                "multi-choice options": options,
                "answer": letter,
                "category": question.category,
                "l2-category": question.category.split("/")[0],
            }
        )
    return rows


def write_scenes(
    folder: Path,
    seeds: Sequence[int],
    *,
    size: int = 8064,
    scale: float = 1.0,
    ground: str = "mixed",
) -> None:
    """Scenes as JPEG files, with their questions in `train.json` and `test.json`.

    Args:
        folder: made where it does not exist; scenes that are there already are not drawn again.
        ground: see `geollava.scene_drawing.draw`.
    """
    from geollava.scene_drawing import draw

    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for seed in seeds:
        scene = plan(seed, size, scale)
        path = folder / "images" / f"{seed:06d}-{size}-{scale:g}-{ground}.jpg"
        if not path.exists():
            partial = path.with_name(f".{path.name}")
            # Chroma at full resolution: the color of a few pixels is asked for.
            draw(scene, ground).save(partial, "JPEG", quality=95, subsampling=0)
            partial.replace(path)
        rows["test" if is_test(seed) else "train"] += rows_of(scene, f"images/{path.name}")
    for name, part in rows.items():
        partial = folder / f".{name}.json"
        partial.write_text(json.dumps(part, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / f"{name}.json")
