"""A scene's questions as rows: to evaluate on, about boxes, and as conversations to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from geollava.scenes.scene import (
    COLOR_NAMES,
    KINDS,
    LAND_USES,
    LANDMARKS,
    Question,
    Scene,
    Thing,
    color_name,
    land_use_at,
)
from geollava.scenes.shapes import box_of

# The benchmark's own words, so that the same scoring serves.
CHOICES_FOLLOW = "The choices are listed below:\n"
INSTRUCTION = (
    "\n\nSelect the best answer for the multiple-choice question based on the image. Only respond "
    "with the letter corresponding to the correct answer (A, B, C, D).\nThe answer is:"
)
DESCRIBE = "What stands out in this image?"
READING_BAND = 336  # pixels: what stands out is told crop by crop


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
