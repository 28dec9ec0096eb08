"""Questions in many words: the templates of `phrasings.json`, filled in.

Every `HELD_OUT_EVERY`th template of a family is for testing only. Words for things are British and
American in turn; answers keep this package's own words.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from geollava.common.choices import PhrasingPart

HELD_OUT_EVERY = 5
PARTS = get_args(PhrasingPart)
CHOICES = "choices"  # the family of forms that list choices and ask for a letter
WORDS = "words"
LISTS = ("({}) {}", "{}) {}", "{}. {}")  # how a letter and its choice are written
JOINTS = (" ", ", ", "; ")


class Phrase(NamedTuple):
    """A template, and whether it is for testing only."""

    text: str
    held_out: bool


@cache
def read_templates() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("phrasings.json").read_text(encoding="utf-8"))


def families() -> tuple[str, ...]:
    """Names of the question families, in the order of the file."""
    return tuple(name for name in read_templates() if name not in (WORDS, CHOICES))


@cache
def phrasings(family: str, part: PhrasingPart = "all") -> tuple[Phrase, ...]:
    """The templates of a family.

    Args:
        family: one of `families()`, or "choices".
        part: "train" leaves out every fifth, "test" has these alone.

    Raises:
        ValueError: no such family or part.
    """
    if family not in (*families(), CHOICES):
        raise ValueError(f"family must be one of {', '.join(families())}, got {family!r}")
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    phrases = [
        Phrase(text, index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)
        for index, text in enumerate(read_templates()[family])
    ]
    return tuple(p for p in phrases if part == "all" or p.held_out == (part == "test"))


def say(
    family: str, slots: dict[str, str], rng: np.random.Generator, part: PhrasingPart = "all"
) -> Phrase:
    """A question of a family in some words.

    Args:
        slots: what a template's names stand for: `thing` as one of `KINDS` or `LANDMARKS`, with its
            color before it where the question needs it; `color`; `land`.
    """
    options = phrasings(family, part)
    template, held_out = options[rng.integers(len(options))]
    filled = {"colour": any_word("color", rng)[0], "helipad": any_word("helipad", rng)[0]}
    filled["fire"] = any_word("fire", rng)[0]
    if "thing" in slots:
        singular, plural = name_of(slots["thing"], rng)
        filled |= {"thing": singular, "things": plural, "a_thing": with_article(singular)}
    if "color" in slots:
        filled["color"] = slots["color"]
    if "land" in slots:
        filled["land"] = any_word(slots["land"], rng)[0]
    return Phrase(template.format(**filled), held_out)


def any_word(word: str, rng: np.random.Generator) -> list[str]:
    """A word or one that means the same, as [singular, plural]; half the time the word itself."""
    words: list[list[str]] = read_templates()[WORDS][word]
    return words[0 if rng.random() < 0.5 else rng.integers(len(words))]


def name_of(thing: str, rng: np.random.Generator) -> tuple[str, str]:
    """Singular and plural of such as "red storage tank"."""
    color, _, kind = thing.partition(" ")
    if thing in read_templates()[WORDS]:
        color, kind = "", thing
    singular, plural = any_word(kind, rng)
    return f"{color} {singular}".strip(), f"{color} {plural}".strip()


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def list_choices(
    question: str, choices: tuple[str, ...], rng: np.random.Generator, part: PhrasingPart = "all"
) -> Phrase:
    """A question with choices that asks for a letter."""
    options = phrasings(CHOICES, part)
    template, held_out = options[rng.integers(len(options))]
    form = LISTS[rng.integers(len(LISTS))]
    listed = [form.format(chr(65 + index), choice) for index, choice in enumerate(choices)]
    joined = JOINTS[rng.integers(len(JOINTS))].join(listed)
    return Phrase(
        template.format(question=question, listed=joined, lines="\n".join(listed)), held_out
    )
