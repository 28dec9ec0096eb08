"""What can stand in a scene, and what is asked about it: words, colors, and places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Color = tuple[int, int, int]
Spot = tuple[float, float]

COLORS: dict[str, Color] = {
    "white": (240, 240, 235),
    "red": (205, 40, 35),
    "blue": (40, 75, 205),
    "yellow": (235, 205, 45),
    "cyan": (70, 205, 215),
}
PURPLE: Color = (175, 50, 190)  # of one vehicle alone, which questions call by it
PALETTE = COLORS | {"purple": PURPLE}
COLOR_NAMES = tuple(PALETTE)
KINDS = ("car", "truck", "airplane", "ship", "storage tank")
VEHICLES = KINDS[:4]
LANDMARKS = ("helipad", "fire")
LAND_USES = ("water", "forest", "farmland", "residential area", "desert")
DIRECTIONS = {
    "north-west": (-1, -1),
    "north-east": (1, -1),
    "south-west": (-1, 1),
    "south-east": (1, 1),
}
# How far from the middle of its quarter, in sides of the scene, a land use surely reaches. Beyond
# it edges are ragged, and the ground between may look like a land use itself: nothing that is asked
# for by its land use stands there.
REACH = 0.16


@dataclass(frozen=True)
class Thing:
    """What stands out of the ground.

    Attributes:
        kind: one of `KINDS` or `LANDMARKS`.
        color: of landmarks it says nothing.
        x, y: its center in pixels.
        heading: in radians; of a fire, where its smoke goes.
        moving: drawn with a wake or dust behind it.
    """

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
        size: side in pixels.
        scale: size of the things.
        land_uses: of the four quarters: upper left, upper right, lower left, lower right.
    """

    seed: int
    size: int
    scale: float
    land_uses: tuple[str, ...]
    things: list[Thing] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    def ask(self, category: str, text: str, choices: Sequence[Any], answer: Any) -> None:
        words = tuple(str(choice) for choice in choices)
        self.questions.append(Question(category, text, words, words.index(str(answer))))


def quarter_distance(spot: Spot, quarter: int, size: int) -> float:
    """How far a spot is from the middle of a quarter, in sides of the scene."""
    across, down = 0.25 + 0.5 * (quarter % 2), 0.25 + 0.5 * (quarter // 2)
    return max(abs(spot[0] / size - across), abs(spot[1] / size - down))


def land_use_at(scene: Scene, thing: Thing) -> str | None:
    """The land use that a thing surely stands on."""
    for quarter, use in enumerate(scene.land_uses):
        if quarter_distance((thing.x, thing.y), quarter, scene.size) < REACH + 0.04:
            return use
    return None


def color_name(thing: Thing) -> str:
    return next(name for name, value in PALETTE.items() if value == thing.color)
