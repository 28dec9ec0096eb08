"""What is true of a scene, whatever it is that shows it: things with all that is asked of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geollava.scenes.scene import (
    DIRECTIONS,
    LANDMARKS,
    VEHICLES,
    Scene,
    Thing,
    color_name,
    land_use_at,
)

BESIDE = 30  # pixels at scale 1, from the middle of a fire to what is beside it
NEAR_PAD = 72  # likewise, along either axis, to what is asked about as seen from a helipad
CLEAR = 2.5  # the shorter axis has at least one part in so many of the longer


@dataclass(frozen=True)
class Fact:
    """A thing, and what is sure about it.

    Attributes:
        kind: one of `KINDS` or `LANDMARKS`.
        color: None for landmarks.
        moving: None for what cannot move.
        land_use: None where it is not sure.
        beside_fire: whether it stands right beside one.
        direction: as seen from the helipad near it; None where no helipad is near, or where it is
            not clear.
    """

    kind: str
    color: str | None = None
    moving: bool | None = None
    land_use: str | None = None
    beside_fire: bool = False
    direction: str | None = None


@dataclass(frozen=True)
class Facts:
    """All things of a scene, and the land uses in it."""

    things: tuple[Fact, ...]
    land_uses: tuple[str, ...]


def facts_of(scene: Scene) -> Facts:
    return Facts(tuple(fact_of(thing, scene) for thing in scene.things), scene.land_uses)


def fact_of(thing: Thing, scene: Scene) -> Fact:
    """What is sure about one thing of a scene."""
    land_use = land_use_at(scene, thing)
    if thing.kind in LANDMARKS:
        return Fact(thing.kind, land_use=land_use)
    return Fact(
        thing.kind,
        color=color_name(thing),
        moving=thing.moving if thing.kind in VEHICLES else None,
        land_use=land_use,
        beside_fire=is_beside_fire(thing, scene),
        direction=direction_of(thing, scene),
    )


def is_beside_fire(thing: Thing, scene: Scene) -> bool:
    return any(
        math.dist((thing.x, thing.y), (fire.x, fire.y)) < BESIDE * scene.scale
        for fire in scene.things
        if fire.kind == "fire"
    )


def direction_of(thing: Thing, scene: Scene) -> str | None:
    """In which direction a thing is from the helipad near it; of several the last counts."""
    found = None
    for pad in scene.things:
        across, down = thing.x - pad.x, thing.y - pad.y
        near, far = sorted((abs(across), abs(down)))
        if pad.kind != "helipad" or far >= NEAR_PAD * scene.scale:
            continue
        way = int(np.sign(across)), int(np.sign(down))
        clear = near > far / CLEAR
        found = next(name for name, sign in DIRECTIONS.items() if sign == way) if clear else None
    return found
