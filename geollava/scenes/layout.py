"""Plans a scene: where everything stands, and one question of each family.

Answers are drawn by lot before the scene is laid out, evenly over the choices that the question
lists: whoever does not look at the image is right by chance alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from geollava.scenes.scene import (
    COLORS,
    DIRECTIONS,
    KINDS,
    LAND_USES,
    PURPLE,
    REACH,
    VEHICLES,
    Scene,
    Spot,
    Thing,
    quarter_distance,
)

MIN_SIZE = 512  # pixels, at scale 1: what the things of a scene need
ROOMY_SIZE = 1024  # likewise; in smaller scenes things stand closer to each other
GAPS = 34, 45  # pixels, at scale 1: the smallest and the usual distance between two of them
ATTEMPTS = 20  # at laying out a scene; nearly always the first does
TEST_EVERY = 5  # one scene in so many is for testing


class NoRoomError(Exception):
    """A thing found no place."""


class Planner:
    """Places things apart from each other.

    Args:
        seed: of the scene. size: side in pixels. scale: of the things; 1 is a car of 6 x 3 pixels.
        attempt: another one gives another scene of the same seed.
    """

    def __init__(self, seed: int, size: int, scale: float, attempt: int) -> None:
        self.rng = np.random.default_rng([seed, size, attempt])
        self.taken: list[Spot] = []
        self.size, self.scale = size, scale
        smallest, usual = GAPS
        self.gap = scale * min(usual, max(smallest, usual * size / (ROOMY_SIZE * scale)))

    def place(
        self, accept: Callable[[Spot], bool] = lambda spot: True, beside: Spot | None = None
    ) -> Spot:
        """A spot that is accepted, far from all others but the one it is to be `beside`."""
        margin, gap = 40 * self.scale, self.gap
        low, high = np.full(2, margin), np.full(2, self.size - margin)
        if beside is not None:
            low = np.maximum(low, np.subtract(beside, 2 * gap))
            high = np.minimum(high, np.add(beside, 2 * gap))
        others = [spot for spot in self.taken if spot != beside]
        for _ in range(20_000):
            spot = tuple(self.rng.uniform(low, high).tolist())
            if accept(spot) and all(math.dist(spot, other) > gap for other in others):
                self.taken.append(spot)
                return spot
        raise NoRoomError

    def thing(self, kind: str, spot: Spot, **more: Any) -> Thing:
        color = more.pop("color", None) or self.choose(COLORS.values(), 1)[0]
        heading = more.pop("heading", float(self.rng.uniform(0, 2 * math.pi)))
        return Thing(kind, color, *spot, heading, **more)

    def choose(self, options: Any, count: int) -> list[Any]:
        """So many of the options, each once, in random order."""
        options = list(options)
        return [options[index] for index in self.rng.permutation(len(options))[:count]]

    def numbers(self, first: int, last: int) -> tuple[range, int]:
        """Four neighboring numbers that start between `first` and `last`, and one of them."""
        start = int(self.rng.integers(first, last + 1))
        return range(start, start + 4), start + int(self.rng.integers(4))


def plan(seed: int, size: int = 8064, scale: float = 1.0) -> Scene:
    """A scene with a question of each family, the same for the same arguments.

    Args:
        size: side of the square scene in pixels.
        scale: size of the objects; at 1 a car has 6 x 3 pixels, an airplane 18 x 18.

    Raises:
        ValueError: too small for its objects.
    """
    if not (0 < scale < math.inf and size >= MIN_SIZE * scale):
        raise ValueError(
            f"size must be at least {MIN_SIZE:,} pixels times the objects' scale, "
            f"got {size} for {scale}"
        )
    for attempt in range(ATTEMPTS):
        with suppress(NoRoomError):
            return plan_once(Planner(seed, size, scale, attempt), seed)
    raise ValueError(f"a scene of {size} pixels is too small for its objects")


def plan_once(make: Planner, seed: int) -> Scene:
    size, scale = make.size, make.scale
    scene = Scene(seed, size, scale, tuple(make.choose(LAND_USES, 4)))
    region, of_pad = make.choose(range(4), 2)
    of_fire = int(make.rng.integers(4))
    counted, regional, *others = make.choose(KINDS, len(KINDS))

    def inside(quarter: int, reach: float = REACH) -> Callable[[Spot], bool]:
        return lambda spot: quarter_distance(spot, quarter, size) < reach

    # The helipad, and the purple vehicle on one side of it.
    pad = make.place(inside(of_pad, REACH - 0.04))
    directions, states = make.choose(DIRECTIONS, 4), make.choose(("moving", "standing still"), 2)
    vehicles = make.choose(VEHICLES, 4)
    right, down = DIRECTIONS[directions[0]]

    def that_way(spot: Spot) -> bool:
        across, along = (spot[0] - pad[0]) * right, (spot[1] - pad[1]) * down
        near, far = sorted((across, along))
        on_land = quarter_distance(spot, of_pad, size) < REACH + 0.04
        return on_land and 26 * scale < far < 70 * scale and near > far / 2

    vehicle = make.thing(
        vehicles[0],
        make.place(that_way, beside=pad),
        color=PURPLE,
        moving=states[0] == "moving",
    )
    # The fire, and something on the side that its smoke does not go to.
    fire = make.thing("fire", make.place(inside(of_fire)))
    colors = make.choose(COLORS, 4)

    def upwind(spot: Spot) -> bool:
        angle = math.atan2(spot[1] - fire.y, spot[0] - fire.x) - fire.heading
        return (
            20 * scale < math.dist(spot, (fire.x, fire.y)) < 28 * scale and math.cos(angle) < -0.5
        )

    spot = make.place(upwind, beside=(fire.x, fire.y))
    neighbor = make.thing(others[0], spot, color=COLORS[colors[0]])

    # What is counted: all of a kind, and those of another kind in one land use.
    numbers, total = make.numbers(1, 6)
    spots = [make.place() for _ in range(total - (vehicle.kind == counted))]
    things = [make.thing(counted, spot) for spot in spots]
    few, here = make.numbers(0, 4)
    spots = [make.place(inside(region)) for _ in range(here)]
    elsewhere = [quarter for quarter in range(4) if quarter != region]
    for _ in range(make.rng.integers(0, 5)):
        spots.append(make.place(inside(elsewhere[make.rng.integers(3)])))
    things += [make.thing(regional, spot) for spot in spots]
    scene.things = [make.thing("helipad", pad), fire, *things, neighbor, vehicle]

    text = f"How many {counted}s are in the image?"
    scene.ask("Counting/Overall counting", text, numbers, total)
    text = f"How many {regional}s are in the {scene.land_uses[region]}?"
    scene.ask("Counting/Regional counting", text, few, here)
    text = "What kind of vehicle is purple?"
    ask_shuffled(make, scene, "Object properties/Object classification", text, vehicles)
    text = "What is the color of the object beside the fire?"
    ask_shuffled(make, scene, "Object properties/Object color", text, colors)
    text = "Is the purple vehicle moving or standing still?"
    ask_shuffled(make, scene, "Object properties/Object motion state", text, states)
    text = "Seen from the helipad, in which direction is the purple vehicle?"
    category = "Object spatial relationship/Object spatial relationship"
    ask_shuffled(make, scene, category, text, directions)
    for category, text, quarter in (
        (
            "Land use classification/Regional Land use classification",
            "What is the land use around the helipad?",
            of_pad,
        ),
        (
            "Complex reasoning/Anomaly Detection and Interpretation",
            "Something burns in this image. On which land use?",
            of_fire,
        ),
    ):
        use = scene.land_uses[quarter]
        wrong = make.choose([other for other in LAND_USES if other != use], 3)
        ask_shuffled(make, scene, category, text, [use, *wrong])
    return scene


def ask_shuffled(
    make: Planner, scene: Scene, category: str, text: str, choices: Sequence[str]
) -> None:
    """A question whose first choice is the right one."""
    scene.ask(category, text, make.choose(choices, len(choices)), choices[0])


def is_test(seed: int) -> bool:
    """Whether a scene is kept for testing: no scene is in both parts."""
    return seed % TEST_EVERY == 0
