"""Very large scenes whose every object is known, with questions in the families of XLRS-Bench.

A scene is planned first (what stands where, which questions are asked), then drawn by
`scene_drawing`. Answers are drawn by lot before the scene is laid out, evenly over the choices that
the question lists: whoever does not look at the image is right by chance alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

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
# The benchmark's own words, so that the same scoring serves.
CHOICES_FOLLOW = "The choices are listed below:\n"
INSTRUCTION = (
    "\n\nSelect the best answer for the multiple-choice question based on the image. Only respond "
    "with the letter corresponding to the correct answer (A, B, C, D).\nThe answer is:"
)
MIN_SIZE = 512  # pixels, at scale 1: what the things of a scene need
ROOMY_SIZE = 1024  # likewise; in smaller scenes things stand closer to each other
GAPS = 34, 45  # pixels, at scale 1: the smallest and the usual distance between two of them
ATTEMPTS = 20  # at laying out a scene; nearly always the first does
DESCRIBE = "What stands out in this image?"
READING_BAND = 336  # pixels: what stands out is told crop by crop
TEST_EVERY = 5  # one scene in so many is for testing


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


def quarter_distance(spot: Spot, quarter: int, size: int) -> float:
    """How far a spot is from the middle of a quarter, in sides of the scene."""
    across, down = 0.25 + 0.5 * (quarter % 2), 0.25 + 0.5 * (quarter // 2)
    return max(abs(spot[0] / size - across), abs(spot[1] / size - down))


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


def prompt_of(question: Question) -> str:
    return question.text + CHOICES_FOLLOW + "\n".join(options_of(question)) + INSTRUCTION


def options_of(question: Question) -> list[str]:
    return [f"({chr(65 + index)}) {choice}" for index, choice in enumerate(question.choices)]


def question_rows(scene: Scene, image: str) -> list[dict[str, Any]]:
    """A scene's questions, a row each, with the columns of XLRS-Bench-lite beside them."""
    rows = []
    for index, question in enumerate(scene.questions):
        letter = chr(65 + question.answer)
        rows.append(
            {
                "id": f"scene-{scene.seed}-{index}",
                "image": [image],
                "conversations": conversation([(prompt_of(question), letter)]),
                "index": scene.seed * len(scene.questions) + index,
                "question": question.text,
                "multi-choice options": options_of(question),
                "answer": letter,
                "category": question.category,
                "l2-category": question.category.split("/")[0],
            }
        )
    return rows


def box_rows(scene: Scene, image: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows about boxes in image pixels: (questions that name one, questions that ask for one).

    The first have the columns of XLRS-Bench-lite and serve `geollava evaluate ablation`, the second
    those of `geollava evaluate xlrs-grounding`.
    """
    from geollava.scenes.draw import box_of

    rng = np.random.default_rng([scene.seed, scene.size, 3])
    boxed = Scene(scene.seed, scene.size, scene.scale, scene.land_uses)
    grounding = []
    things = [thing for thing in scene.things if thing.kind not in LANDMARKS]
    # The last two stand where questions look: the neighbor of the fire, and the purple vehicle.
    for place, thing in enumerate(things[-2:]):
        box = list(box_of(thing, scene.scale))
        for category, what, right, words in (
            ("classification", "What kind of object is", thing.kind, KINDS),
            ("color", "What is the color of the object", color_name(thing), COLOR_NAMES),
        ):
            wrong = [word for word in words if word != right]
            choices = [right, *(wrong[index] for index in rng.permutation(len(wrong))[:3])]
            choices = [choices[index] for index in rng.permutation(4)]
            boxed.ask(f"Object properties/Object {category}", f"{what} in {box}?", choices, right)
        name = ("object beside the fire", "purple vehicle")[place]
        question = f"Give the box [x1, y1, x2, y2] of the {name}, in pixels of the image."
        row = {"index": scene.seed * 2 + place, "image": [image], "question": question}
        grounding.append({"id": f"scene-{scene.seed}-box-{place}", **row, "answer": box})
    return question_rows(boxed, image), grounding


def training_row(
    scene: Scene, image: str, variant: int = 0, *, choices: bool = True
) -> dict[str, Any]:
    """One conversation about a scene, in random order: the scene's questions, some of them with
    choices too, others that it answers, and in every fourth variant what stands out.

    The image is encoded once for all of them.

    Args:
        variant: other choices in another order, and other questions beside the scene's own.
        choices: whether any question lists choices and asks for a letter.
    """
    rng = np.random.default_rng([scene.seed, scene.size, 2, variant])
    # Most of the loss would be on these many words, and it is soon learned.
    turns = [] if variant % 4 else [(DESCRIBE, describe(scene))]
    own = [varied(question, rng) for question in scene.questions]
    for question in own + [varied(question, rng) for question in more_questions(scene, rng)]:
        turns.append((question.text, question.choices[question.answer]))
    with_choices = len(own) // 2 if choices else 0
    for question in [own[index] for index in rng.permutation(len(own))[:with_choices]]:
        turns.append((prompt_of(question), chr(65 + question.answer)))
    order = rng.permutation(len(turns))
    return {
        "id": f"scene-{scene.seed}-{variant}",
        "image": [image],
        "conversations": conversation([turns[index] for index in order]),
    }


def varied(question: Question, rng: np.random.Generator) -> Question:
    """The same question, its choices in another order; numbers keep theirs."""
    right = question.choices[question.answer]
    if right.isdigit():
        return question
    choices = tuple(question.choices[index] for index in rng.permutation(len(question.choices)))
    return replace(question, choices=choices, answer=choices.index(right))


def more_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions whose answers are sure, but not drawn by lot: they teach, and test nobody.

    In random order. Each number is counted to once in the scene and once in a part of it: in most
    parts most kinds do not stand, and whoever learned from every count would learn to say 0.
    """
    standing = {kind: [thing for thing in scene.things if thing.kind == kind] for kind in KINDS}
    more: list[Question] = []

    def ask(text: str, right: str, words: Sequence[str] = ()) -> None:
        if words:
            wrong = [word for word in words if word != right]
            choices = (right, *(wrong[index] for index in rng.permutation(len(wrong))[:3]))
        else:
            first = max(0, int(right) - int(rng.integers(4)))
            choices = tuple(str(number) for number in range(first, first + 4))
        more.append(Question("", text, choices, choices.index(right)))

    for kind, things in standing.items():
        ask(f"How many {kind}s are in the image?", str(len(things)))
        uses = [land_use_at(scene, thing) for thing in things]
        for use in scene.land_uses if None not in uses else ():
            ask(f"How many {kind}s are in the {use}?", str(uses.count(use)))
        if len(things) == 1:
            ask(f"What is the color of the {kind}?", color_name(things[0]), COLOR_NAMES)
            if uses[0] is not None:
                ask(f"What is the land use around the {kind}?", uses[0], LAND_USES)
    colored = [thing for things in standing.values() for thing in things]
    names = [color_name(thing) for thing in colored]
    for thing, name in zip(colored, names, strict=True):
        if names.count(name) == 1 and name != "white":  # as are the helipad's mark and wakes
            ask(f"What is {name}?", thing.kind, KINDS)
    own = {question.text for question in scene.questions}
    counted: set[tuple[bool, str]] = set()
    chosen = []
    for index in rng.permutation(len(more)):
        question = more[index]
        right = question.choices[question.answer]
        count = question.text.endswith("in the image?"), right
        if question.text in own or count in counted:
            continue
        if right.isdigit():
            counted.add(count)
        chosen.append(question)
    return chosen


def color_name(thing: Thing) -> str:
    return next(name for name, value in PALETTE.items() if value == thing.color)


def land_use_at(scene: Scene, thing: Thing) -> str | None:
    """The land use that a thing surely stands on."""
    for quarter, use in enumerate(scene.land_uses):
        if quarter_distance((thing.x, thing.y), quarter, scene.size) < REACH + 0.04:
            return use
    return None


def describe(scene: Scene) -> str:
    """All things of a scene, crop by crop."""

    def place(thing: Thing) -> tuple[int, int, float]:
        return int(thing.y // READING_BAND), int(thing.x // READING_BAND), thing.y

    return ", ".join(words_for(scene, thing) for thing in sorted(scene.things, key=place))


def words_for(scene: Scene, thing: Thing) -> str:
    """Such as "a red car moving in the desert"."""
    words = [thing.kind]
    if thing.kind not in LANDMARKS:
        words = [color_name(thing), thing.kind] + ["moving"] * thing.moving
    use = land_use_at(scene, thing)
    if use is not None:
        words += ["in the", use]
    return " ".join(words)


def conversation(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """(question, answer) pairs in the form of the published data."""
    said = []
    for index, (question, answer) in enumerate(turns):
        mark = "<image>\n" if index == 0 else ""
        said += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    return said


def write_scenes(
    folder: Path,
    seeds: Sequence[int],
    *,
    size: int = 8064,
    scale: float = 1.0,
    ground: str = "mixed",
    variants: int = 1,
    choices: bool = True,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Scenes as JPEG files, with their questions in `train.json` and `test.json`.

    Of the scenes for testing, `boxes.json` asks what is in a box, and `grounding.json` for a box.

    Args:
        folder: made where it does not exist; scenes that are there already are not drawn again.
        ground: see `geollava.scenes.draw.draw`.
        variants, choices: conversations about each scene for training; see `training_row`.
        progress: called with the number of scenes done.
    """
    from geollava.scenes.draw import draw

    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": [], "boxes": [], "grounding": []}
    for done, seed in enumerate(seeds, 1):
        scene = plan(seed, size, scale)
        path = folder / "images" / f"{seed:06d}-{size}-{scale:g}-{ground}.jpg"
        if not path.exists():
            partial = path.with_name(f".{path.name}")
            # Chroma at full resolution: the color of a few pixels is asked for.
            draw(scene, ground).save(partial, "JPEG", quality=95, subsampling=0)
            partial.replace(path)
        name = f"images/{path.name}"
        if is_test(seed):
            rows["test"] += question_rows(scene, name)
            for part, more in zip(("boxes", "grounding"), box_rows(scene, name), strict=True):
                rows[part] += more
        else:
            rows["train"] += [
                training_row(scene, name, variant, choices=choices) for variant in range(variants)
            ]
        if progress is not None:
            progress(done)
    for name, content in rows.items():
        partial = folder / f".{name}.json"
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / f"{name}.json")
