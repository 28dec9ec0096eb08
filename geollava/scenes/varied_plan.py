"""Scenes of any content: nothing to twelve of a kind, objects of any size, landmarks or none.

`layout.plan` lays a scene out around eight questions; here things are laid out first, and what they
answer is asked (`families.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from geollava.scenes.layout import NoRoomError, Planner
from geollava.scenes.scene import KINDS, LAND_USES, PALETTE, REACH, VEHICLES, Scene, Spot, Thing
from geollava.scenes.scene import quarter_distance as distance

MIN_SIZE = 672  # pixels: two crops on a side
SCALES = 0.7, 2.0  # of the things, where none is given
MOST = 12, 6, 3, 2, 1  # of each kind, the kinds in random order
CELL = 336  # pixels: things that are asked about together stand in one crop
PAD, FIRE, NEIGHBOR = 0.7, 0.7, 0.85  # how often they are there
ON_LAND = 0.8  # share of the things that surely stand on a land use


def plan_varied(seed: int, size: int = 8064, scale: float | None = None) -> Scene:
    """A scene without questions of its own, the same for the same arguments.

    Args:
        size: side of the square scene in pixels, at least `MIN_SIZE`.
        scale: size of the things; drawn between `SCALES` by default.

    Raises:
        ValueError: too small, or a scale at which a crop does not hold a pair of things.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size must be at least {MIN_SIZE} pixels, got {size}")
    if scale is not None and not 0 < scale <= SCALES[1]:
        raise ValueError(f"scale must be above 0 and at most {SCALES[1]:g}, got {scale}")
    rng = np.random.default_rng([seed, size, 5])
    drawn = float(np.exp(rng.uniform(*np.log(SCALES)))) if scale is None else scale
    return lay_out(Planner(seed, size, round(drawn, 2), attempt=1000), seed)


def lay_out(make: Planner, seed: int) -> Scene:
    """Landmarks and their neighbors first, then as many of each kind as there is room for."""
    rng, scale = make.rng, make.scale
    scene = Scene(seed, make.size, scale, tuple(make.choose(LAND_USES, 4)))
    colors = make.choose(PALETTE, len(PALETTE))
    common, rare = colors[:3], colors[3:]  # so that some colors are of one thing alone

    def put(kind: str, palette: list[str], spot: Spot) -> Thing:
        moving = kind in VEHICLES and bool(rng.random() < 0.4)
        color = PALETTE[palette[rng.integers(len(palette))]]
        scene.things.append(make.thing(kind, spot, color=color, moving=moving))
        return scene.things[-1]

    with suppress(NoRoomError):
        if rng.random() < PAD:
            pad = put("helipad", common, make.place(beside_others(make)))
            put(make.choose(VEHICLES, 1)[0], rare, make.place(*from_pad(pad, scale)))
    with suppress(NoRoomError):
        if rng.random() < FIRE:
            fire = put("fire", common, make.place(beside_others(make)))
            if rng.random() < NEIGHBOR:
                put(make.choose(KINDS, 1)[0], colors, make.place(*upwind(fire, scale)))
    for kind, most in zip(make.choose(KINDS, len(KINDS)), MOST, strict=True):
        palette = common if most > 1 else rare
        wanted = int(rng.integers(most + 1)) - sum(thing.kind == kind for thing in scene.things)
        for _ in range(wanted):
            with suppress(NoRoomError):
                put(kind, palette, make.place(anywhere(make, int(rng.integers(4)))))
    return scene


def anywhere(make: Planner, quarter: int) -> Callable[[Spot], bool]:
    """Mostly where the land use of a quarter is sure."""
    if make.rng.random() > ON_LAND:
        return lambda spot: True
    return lambda spot: distance(spot, quarter, make.size) < REACH


def beside_others(make: Planner) -> Callable[[Spot], bool]:
    """Where a land use is sure, with room around it in its crop."""
    quarter, room = int(make.rng.integers(4)), min(32 * make.scale, CELL / 5)

    def accept(spot: Spot) -> bool:
        inside = all(room < value % CELL < CELL - room for value in spot)
        return inside and distance(spot, quarter, make.size) < REACH

    return accept


def in_cell_of(thing: Thing, spot: Spot) -> bool:
    return thing.x // CELL == spot[0] // CELL and thing.y // CELL == spot[1] // CELL


def from_pad(pad: Thing, scale: float) -> tuple[Callable[[Spot], bool], Spot]:
    """On one clear side of a helipad, in its crop."""

    def accept(spot: Spot) -> bool:
        near, far = sorted((abs(spot[0] - pad.x), abs(spot[1] - pad.y)))
        return in_cell_of(pad, spot) and 26 * scale < far < 70 * scale and near > far / 2

    return accept, (pad.x, pad.y)


def upwind(fire: Thing, scale: float) -> tuple[Callable[[Spot], bool], Spot]:
    """Right beside a fire, where its smoke does not go, in its crop."""

    def accept(spot: Spot) -> bool:
        angle = math.atan2(spot[1] - fire.y, spot[0] - fire.x) - fire.heading
        reach = math.dist(spot, (fire.x, fire.y))
        return in_cell_of(fire, spot) and 20 * scale < reach < 28 * scale and math.cos(angle) < -0.5

    return accept, (fire.x, fire.y)
