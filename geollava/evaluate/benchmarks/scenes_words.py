"""Questions in many words about the scenes of `geollava scenes --layout varied`.

A count is right where it is exact to five, and at most one off above; a description where it names
every kind that is there and no other, each count as above; any other answer is one exact word. The
subtask is the question's family, "letters" where it asks for one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from geollava.evaluate.benchmark import Benchmark, get_field

LETTERS = "letters"
DESCRIBE = "describe"
EXACT = 5  # counts up to here must be exact
COUNTED = re.compile(r"(\d+) ([a-z ]+)")


def read_reply(row: Mapping[str, Any], reply: str) -> str:
    words = reply.strip().rstrip(".").lower()
    if row.get(LETTERS):
        return words.strip("()").upper()[:1] if len(words.strip("()")) <= 1 else words
    return words


def is_right_count(wanted: str, given: str) -> bool:
    if not given.isdecimal():
        return False
    return abs(int(given) - int(wanted)) <= (int(wanted) > EXACT)


def counts_in(description: str) -> dict[str, str]:
    """{kind in the singular: how many} of such as "3 cars, 1 ship"."""
    return {kind.removesuffix("s"): number for number, kind in COUNTED.findall(description)}


def grade(row: Mapping[str, Any], reply: str) -> bool:
    wanted, given = str(get_field(row, "answer")), read_reply(row, reply)
    if row.get(LETTERS):
        return given == wanted
    if row.get("family") == DESCRIBE and COUNTED.search(wanted):
        right, said = counts_in(wanted), counts_in(given)
        return right.keys() == said.keys() and all(
            is_right_count(number, said[kind]) for kind, number in right.items()
        )
    return is_right_count(wanted, given) if wanted.isdecimal() else given == wanted.lower()


def subtask_of(row: Mapping[str, Any]) -> str:
    return LETTERS if row.get(LETTERS) else str(get_field(row, "family"))


def chance(row: Mapping[str, Any]) -> float:
    """Of a guesser who knows what might be answered; descriptions are not guessed."""
    choices = get_field(row, "choices")
    if not isinstance(choices, list):
        raise ValueError(f"row {row.get('index', '?')}: 'choices' must be a list, got {choices!r}")
    return 1 / len(choices) if choices else 0.0


BENCHMARK = Benchmark(
    name="scenes-words",
    title="Scenes, questions in many words",
    build_prompt=lambda row: str(get_field(row, "question")),
    subtask_of=subtask_of,
    read_reply=read_reply,
    grade=grade,
    chance=chance,
    max_new_tokens=40,
    how_to="`geollava scenes FOLDER --layout varied` writes test.json",
)
