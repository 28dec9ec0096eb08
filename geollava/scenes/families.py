"""What is asked about a scene's facts: eleven families of questions, each in twenty wordings.

A family says what it asks about, what is true, and among which answers; `phrasing.py` says it in
words. What the scene does not hold is asked for too: the answer is `UNKNOWN`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from geollava.common.choices import PhrasingPart
from geollava.scenes.facts import Fact, Facts
from geollava.scenes.phrasing import list_choices, say
from geollava.scenes.scene import COLOR_NAMES, DIRECTIONS, KINDS, LAND_USES, LANDMARKS, VEHICLES

UNKNOWN = "I cannot tell"
NOTHING = "nothing"
MOST = 12  # that is counted to
NUMBERS = tuple(str(number) for number in range(MOST + 1))
YES_NO = ("yes", "no")
MOTIONS = ("moving", "standing still")
ABSENT = 0.2  # of the questions ask for what is not there
WITH_COLOR = 0.4  # of the questions that can name a color do


T = TypeVar("T")


class Wanted(NamedTuple):
    """What a family asks: what fills its templates, the true answer, and all that it might be."""

    slots: dict[str, str]
    answer: str
    choices: tuple[str, ...]


class Asked(NamedTuple):
    """A question in words.

    Attributes:
        held_out: in a wording that is for testing only.
        letters: it lists choices, and the answer is a letter.
    """

    family: str
    question: str
    answer: str
    choices: tuple[str, ...]
    held_out: bool
    letters: bool = False


def pick(options: Sequence[str], rng: np.random.Generator) -> str | None:
    return options[int(rng.integers(len(options)))] if options else None


def fits(fact: Fact, phrase: str) -> bool:
    """Whether a thing is meant by "car", or by "red car"."""
    return phrase in (fact.kind, f"{fact.color} {fact.kind}")


def number_of(facts: Facts, phrase: str) -> int:
    return sum(fits(fact, phrase) for fact in facts.things)


def phrases_of(facts: Facts, kinds: Sequence[str]) -> list[str]:
    """What names exactly one thing of these kinds: its kind, or its color with it."""
    found = []
    for fact in facts.things:
        names = [fact.kind, *([f"{fact.color} {fact.kind}"] if fact.color else [])]
        found += [name for name in names if fact.kind in kinds and number_of(facts, name) == 1]
    return found


def absent(facts: Facts, kinds: Sequence[str], rng: np.random.Generator) -> str | None:
    """What names nothing that is there: a kind, or a color with a kind."""
    colored = rng.random() < WITH_COLOR
    names = [
        f"{color} {kind}" if colored and kind not in LANDMARKS else kind
        for kind in kinds
        for color in COLOR_NAMES
    ]
    return pick([name for name in names if number_of(facts, name) == 0], rng)


def one_thing(
    facts: Facts, kinds: Sequence[str], rng: np.random.Generator, known: Callable[[Fact], object]
) -> tuple[str, Fact | None] | None:
    """(what names it, a thing of which something is known), or what is not there with None."""
    if rng.random() < ABSENT:
        name = absent(facts, kinds, rng)
        return None if name is None else (name, None)
    names = phrases_of(facts, kinds)
    found = [(name, next(f for f in facts.things if fits(f, name))) for name in names]
    found = [(name, fact) for name, fact in found if known(fact) is not None]
    return found[rng.integers(len(found))] if found else None


def ask_count(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    names = [*KINDS]
    if rng.random() < WITH_COLOR:
        names += [f"{color} {kind}" for kind in KINDS for color in COLOR_NAMES]
    name = evenly({name: number_of(facts, name) for name in names}, rng)
    return Wanted({"thing": name}, str(number_of(facts, name)), NUMBERS)


def ask_count_in(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    sure = [k for k in KINDS if all(f.land_use for f in facts.things if f.kind == k)]
    standing = Counter((fact.kind, fact.land_use) for fact in facts.things)
    if not sure:
        return None
    counts = {(kind, land): standing[kind, land] for kind in sure for land in facts.land_uses}
    kind, land = evenly(counts, rng)
    return Wanted({"thing": kind, "land": land}, str(counts[kind, land]), NUMBERS)


def evenly(counts: dict[T, int], rng: np.random.Generator) -> T:
    """What stands there so and so often: each number that occurs is as likely as another."""
    numbers = sorted({number for number in counts.values() if number <= MOST})
    number = numbers[rng.integers(len(numbers))]
    names = [name for name, count in counts.items() if count == number]
    return names[rng.integers(len(names))]


def ask_presence(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    kinds = (*KINDS, *LANDMARKS)
    if rng.random() < 0.5:
        name = absent(facts, kinds, rng)
        return None if name is None else Wanted({"thing": name}, "no", YES_NO)
    fact = facts.things[rng.integers(len(facts.things))] if facts.things else None
    if fact is None:
        return None
    colored = fact.color is not None and rng.random() < WITH_COLOR
    return Wanted({"thing": f"{fact.color} {fact.kind}" if colored else fact.kind}, "yes", YES_NO)


def ask_kind(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    """Not of white things: the helipad's mark and wakes are white too."""
    colors = Counter(fact.color for fact in facts.things if fact.color is not None)
    there = rng.random() >= ABSENT
    named = [c for c in COLOR_NAMES if c != "white" and colors[c] == (1 if there else 0)]
    color = pick(named, rng)
    if color is None:
        return None
    kinds = [fact.kind for fact in facts.things if fact.color == color]
    return Wanted({"color": color}, kinds[0] if kinds else UNKNOWN, KINDS)


def ask_color(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    """Of a thing that is the only one of its kind."""
    alone = [k for k in KINDS if number_of(facts, k) == (0 if rng.random() < ABSENT else 1)]
    kind = pick(alone, rng)
    if kind is None:
        return None
    colors = [fact.color for fact in facts.things if fact.kind == kind]
    return Wanted({"thing": kind}, (colors[0] or "") if colors else UNKNOWN, COLOR_NAMES)


def ask_color_beside(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    fires = number_of(facts, "fire")
    if fires == 0:
        return Wanted({}, UNKNOWN, COLOR_NAMES) if rng.random() < 0.5 else None
    near = [fact.color for fact in facts.things if fact.beside_fire]
    if fires > 1 or len(near) != 1 or near[0] is None:
        return None
    return Wanted({}, near[0], COLOR_NAMES)


def ask_motion(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    found = one_thing(facts, VEHICLES, rng, lambda fact: fact.moving)
    if found is None:
        return None
    name, fact = found
    return Wanted({"thing": name}, UNKNOWN if fact is None else MOTIONS[not fact.moving], MOTIONS)


def ask_moving(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    wanted = ask_motion(facts, rng)
    if wanted is None:
        return None
    answer = {"moving": "yes", "standing still": "no"}.get(wanted.answer, UNKNOWN)
    return Wanted(wanted.slots, answer, YES_NO)


def ask_direction(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    pads = number_of(facts, "helipad")
    if pads == 0:
        name = pick(phrases_of(facts, VEHICLES), rng)
        return (
            None
            if name is None or rng.random() < 0.5
            else Wanted({"thing": name}, UNKNOWN, tuple(DIRECTIONS))
        )
    found = one_thing(facts, VEHICLES, rng, lambda fact: fact.direction)
    if found is None or pads > 1:
        return None
    name, fact = found
    answer = UNKNOWN if fact is None or fact.direction is None else fact.direction
    return Wanted({"thing": name}, answer, tuple(DIRECTIONS))


def ask_land_use(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    found = one_thing(facts, (*KINDS, "helipad", "helipad"), rng, lambda fact: fact.land_use)
    if found is None:
        return None
    name, fact = found
    return Wanted({"thing": name}, UNKNOWN if fact is None else fact.land_use or "", LAND_USES)


def ask_fire(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    fires = [fact for fact in facts.things if fact.kind == "fire"]
    if not fires:
        return Wanted({}, UNKNOWN, LAND_USES) if rng.random() < 0.5 else None
    if len(fires) > 1 or fires[0].land_use is None:
        return None
    return Wanted({}, fires[0].land_use, LAND_USES)


def ask_describe(facts: Facts, rng: np.random.Generator) -> Wanted | None:
    return Wanted({}, describe_counts(facts), ())


def describe_counts(facts: Facts) -> str:
    """Such as "3 cars, 1 ship, 1 fire": how many of each kind, in the order of `KINDS`."""
    counts = [(kind, number_of(facts, kind)) for kind in (*KINDS, *LANDMARKS)]
    said = [f"{number} {kind}{'s' * (number > 1)}" for kind, number in counts if number]
    return ", ".join(said) or NOTHING


FAMILIES: dict[str, Callable[[Facts, np.random.Generator], Wanted | None]] = {
    "count": ask_count,
    "count in": ask_count_in,
    "presence": ask_presence,
    "kind": ask_kind,
    "color": ask_color,
    "color beside": ask_color_beside,
    "motion": ask_motion,
    "moving": ask_moving,
    "direction": ask_direction,
    "land use": ask_land_use,
    "fire": ask_fire,
    "describe": ask_describe,
}
WITHOUT_LETTERS = ("describe",)


def ask_in_words(
    facts: Facts, rng: np.random.Generator, part: PhrasingPart = "all", letters: float = 0.3
) -> list[Asked]:
    """Questions about a scene, one of each family that it can answer, and some with choices too.

    Args:
        part: the phrasings to use; see `phrasings`.
        letters: share of the questions that are asked once more, for a letter.
    """
    asked = []
    for family, wanted_of in FAMILIES.items():
        wanted = wanted_of(facts, rng)
        if wanted is None:
            continue
        question, held_out = say(family, wanted.slots, rng, part)
        asked.append(Asked(family, question, wanted.answer, wanted.choices, held_out))
        can_list = family not in WITHOUT_LETTERS and wanted.answer != UNKNOWN
        if can_list and rng.random() < letters:
            choices = some_choices(wanted, rng)
            question, held_out = say(family, wanted.slots, rng, part)
            listed = list_choices(question, choices, rng, part)
            letter = chr(65 + choices.index(wanted.answer))
            held_out = held_out or listed.held_out
            asked.append(Asked(family, listed.text, letter, choices, held_out, letters=True))
    return asked


def some_choices(wanted: Wanted, rng: np.random.Generator) -> tuple[str, ...]:
    """The true answer among at most three others, in random order; numbers are neighbors."""
    if wanted.choices is NUMBERS:
        right = int(wanted.answer)
        first = int(np.clip(right - rng.integers(4), 0, MOST - 3))
        return tuple(str(number) for number in range(first, first + 4))
    wrong = [choice for choice in wanted.choices if choice != wanted.answer]
    choices = [wanted.answer, *(wrong[index] for index in rng.permutation(len(wrong))[:3])]
    return tuple(choices[index] for index in rng.permutation(len(choices)))
