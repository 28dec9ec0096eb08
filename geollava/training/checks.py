"""What is wrong with a row's words: marks, boxes outside the images, answers that are no choice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from geollava.common.boxes import Box, boxes_in
from geollava.model.processing import IMAGE_TOKEN
from geollava.training.rows import TrainingRow

OPTION = re.compile(r"^\s*\(?([A-Z])[).:]\s*(\S.*?)\s*$", re.MULTILINE)
LETTER_AND_TEXT = re.compile(r"\(?([A-Z])(?:[).:].*)?", re.DOTALL)
LETTERS = re.compile(r"[A-Z](?:[\s,;]*[A-Z])*\.?")


def marks_problem(row: TrainingRow) -> str | None:
    """Marks that do not stand for the row's images, or None."""
    images = len(row.images)
    marks = sum(turn.question.count(IMAGE_TOKEN) for turn in row.turns)
    if any(IMAGE_TOKEN in turn.answer for turn in row.turns):
        return f"an answer must not hold {IMAGE_TOKEN}"
    if marks != images:
        return f"expected one {IMAGE_TOKEN} per image, got {marks} for {images} images"
    return None


def box_systems(box: Box, size: tuple[int, int], canvas: tuple[int, int]) -> list[str]:
    """The coordinate systems in which a box lies inside an image of (width, height) pixels.

    Args:
        canvas: (width, height) in pixels of what the image is resized to.
    """
    (a, b, c, d), (width, height) = box, size

    def fits(x1: float, y1: float, x2: float, y2: float, right: float, bottom: float) -> bool:
        return 0 <= x1 < x2 <= right and 0 <= y1 < y2 <= bottom

    systems = {
        "pixels": fits(a, b, c, d, width, height),
        "fractions of the sides": fits(a, b, c, d, 1, 1),
        "percent of the sides": fits(a, b, c, d, 100, 100),
        "thousandths of the sides": fits(a, b, c, d, 1000, 1000),
        "pixels as y1, x1, y2, x2": fits(b, a, d, c, width, height),
        "pixels as x, y, width, height": fits(a, b, a + c, b + d, width, height),
        f"pixels of the {canvas[0]} x {canvas[1]} canvas": fits(a, b, c, d, *canvas),
    }
    return [name for name, inside in systems.items() if inside]


def box_problems(
    row: TrainingRow,
    sizes: Sequence[tuple[int, int]],
    select_canvas: Callable[[int, int], tuple[int, int]],
) -> Iterator[str]:
    """Boxes that lie in none of the row's images when read as pixels.

    Args:
        sizes: (width, height) of each image that can be read.
        select_canvas: (width, height) of an image -> those of what it is resized to.
    """
    seen = set()
    for box in (box for turn in row.turns for text in turn for box in boxes_in(text)):
        if box in seen:
            continue
        seen.add(box)
        systems = [box_systems(box, size, select_canvas(*size)) for size in sizes]
        if not systems or any("pixels" in found for found in systems):
            continue
        written = "[" + ", ".join(f"{value:g}" for value in box) + "]"
        shown = " and ".join(f"{width} x {height}" for width, height in sizes)
        others = list(dict.fromkeys(name for found in systems for name in found))
        fitting = f"it would fit as {' or '.join(others)}" if others else "it fits no system"
        yield f"the box {written} lies outside the image of {shown} pixels; {fitting}"


def options_in(question: str) -> dict[str, str]:
    """{letter: text} of the choices that a question lists, one to a line, from A on."""
    options: dict[str, str] = {}
    for letter, text in OPTION.findall(question):
        if letter != chr(ord("A") + len(options)):
            break
        options[letter] = text
    return options if len(options) > 1 else {}


def chosen_letters(answer: str) -> set[str]:
    """The letters of an answer such as "B", "(B) three", "A, C" or "AC"; none of other texts."""
    if LETTERS.fullmatch(answer):
        return set(re.findall("[A-Z]", answer))
    match = LETTER_AND_TEXT.fullmatch(answer)
    return {match.group(1)} if match else set()


def answer_problems(row: TrainingRow) -> Iterator[str]:
    """Answers that are none of the choices of their question."""
    for turn in row.turns:
        options = options_in(turn.question)
        text = turn.answer.strip()
        texts = {option.rstrip(".").lower() for option in options.values()}
        if not options or text.rstrip(".").lower() in texts:
            continue
        letters = chosen_letters(text)
        if not letters or not letters <= set(options):
            yield f"the answer {text[:60]!r} is not among the options {', '.join(options)}"
