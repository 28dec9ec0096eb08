"""The questions of `geollava scenes`, asked without their choices and answered in words.

`chance` is that of a guesser who is given the choices all the same; `--blind` is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geollava.evaluate.benchmark import Benchmark, get_field, options_of
from geollava.evaluate.benchmarks.xlrs import SUBTASKS


def build_prompt(row: Mapping[str, Any]) -> str:
    return str(get_field(row, "question"))


def right_words(row: Mapping[str, Any]) -> str:
    """What the answer's letter stands for."""
    letter = str(get_field(row, "answer"))
    for option in options_of(row):
        if option.startswith(f"({letter}) "):
            return option.removeprefix(f"({letter}) ")
    raise ValueError(f"row {row.get('index', '?')}: none of its choices is {letter}")


def read_reply(row: Mapping[str, Any], reply: str) -> str:
    return reply.strip().rstrip(".").lower()


def is_correct(row: Mapping[str, Any], reply: str) -> bool:
    return read_reply(row, reply) == right_words(row).lower()


def subtask_of(row: Mapping[str, Any]) -> str:
    category = str(get_field(row, "category"))
    if category not in SUBTASKS:
        raise ValueError(f"row {row.get('index', '?')}: {category!r} is no task of the scenes")
    return category


BENCHMARK = Benchmark(
    name="scenes-open",
    title="Scenes, open questions",
    build_prompt=build_prompt,
    subtask_of=subtask_of,
    read_reply=read_reply,
    grade=is_correct,
    chance=lambda row: 1 / len(options_of(row)),
    max_new_tokens=8,
)
