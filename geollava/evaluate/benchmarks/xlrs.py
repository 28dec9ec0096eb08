"""XLRS-Bench-lite: 13 visual question answering subtasks (arXiv 2503.23771).

Prompts, letters and scores are those of the public evaluation, quirks included: published figures
compare with nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from geollava.evaluate.benchmark import Benchmark, get_field, options_of

SUBTASKS = (
    "Complex reasoning/Anomaly Detection and Interpretation",
    "Complex reasoning/Environmental condition reasoning",
    "Complex reasoning/Route planning",
    "Counting/Counting with changing detection",
    "Counting/Counting with complex reasoning",
    "Counting/Overall counting",
    "Counting/Regional counting",
    "Land use classification/Overall Land use classification",
    "Land use classification/Regional Land use classification",
    "Object properties/Object classification",
    "Object properties/Object color",
    "Object properties/Object motion state",
    "Object spatial relationship/Object spatial relationship",
)
SEVERAL_ANSWERS = "Land use classification/Overall Land use classification"
ONE = (
    "Select the best answer for the multiple-choice question based on the image. Only respond with "
    "the letter corresponding to the correct answer (A, B, C, D).\nThe answer is:"
)
SEVERAL = (
    "Select the best answer(s) for the multiple-choice question based on the image. There may be "
    "more than one correct option. Only respond with the letter(s) corresponding to the correct "
    "answer(s) (A, B, C, D), with multiple choices separated by spaces.The answer(s) is(are):"
)
# Macro, in percent: arXiv 2505.21375 and the later papers that measured the same 13 subtasks.
PUBLISHED = {
    "Text-Before-Vision": 60.4,
    "GeoEyes": 54.2,
    "DualComp": 53.1,
    "RS-OPSD": 53.1,
    "GeoLLaVA-8K": 51.5,
    "Qwen3-VL-8B": 50.0,
    "Qwen2.5-VL-7B": 47.4,
    "LongVA-7B": 44.7,
}
# Taken out wherever they stand, for their own letters would count. The last two are each two of the
# public code, which lacks the comma between them.
PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)


def build_prompt(row: Mapping[str, Any]) -> str:
    """The prompt of a row, without the image.

    Args:
        row: with `question`, `multi-choice options` (such as "(A) 3 ships") and `category`.

    Raises:
        ValueError: a category that is none of the 13, or a field that is missing.
    """
    request = SEVERAL if subtask_of(row) == SEVERAL_ANSWERS else ONE
    options = "\n".join(options_of(row))
    return f"{get_field(row, 'question')}The choices are listed below:\n{options}\n\n{request}"


def extract_letters(text: str) -> list[str]:
    """The options that a reply names, from A to E, ascending, each once.

    Letters in parentheses count where there are any, else every letter a to e of every word: "Both
    A and B" also names D. A reply without any capital A to E names none.
    """
    for phrase in PHRASES:
        text = text.replace(phrase, "")
    if not re.search("[A-E]", text):
        return []
    letters = re.findall(r"\(([a-eA-E])\)", text) or re.findall("[a-eA-E]", text)
    return sorted({letter.upper() for letter in letters})


def is_correct(row: Mapping[str, Any], prediction: str) -> bool:
    """Whether the reply names exactly the letters of the answer."""
    return set(extract_letters(prediction)) == set(get_field(row, "answer"))


def score(rows: Sequence[Mapping[str, Any]], predictions: Sequence[str]) -> dict[str, Any]:
    """Shares of correct replies.

    Args:
        rows: with `category`, `answer` and `index`.
        predictions: one reply per row.

    Returns:
        `micro`: over rows; `macro`: mean over the 13 subtasks, a subtask without rows counting 0 as
        in the public evaluation; `per_subtask`: name -> share; `rows_per_subtask`: name -> rows.

    Raises:
        ValueError: no rows, another number of predictions, an unknown category.
    """
    if len(rows) != len(predictions):
        raise ValueError(f"{len(rows)} rows need as many predictions, got {len(predictions)}")
    if not rows:
        raise ValueError("score needs at least one row, got none")
    outcomes: dict[str, list[bool]] = {subtask: [] for subtask in SUBTASKS}
    for row, prediction in zip(rows, predictions, strict=True):
        outcomes[subtask_of(row)].append(is_correct(row, prediction))
    per_subtask = {
        subtask: sum(correct) / len(correct) if correct else 0.0
        for subtask, correct in outcomes.items()
    }
    return {
        "micro": sum(map(sum, outcomes.values())) / len(rows),
        "macro": sum(per_subtask.values()) / len(SUBTASKS),
        "per_subtask": per_subtask,
        "rows_per_subtask": {subtask: len(correct) for subtask, correct in outcomes.items()},
    }


def subtask_of(row: Mapping[str, Any]) -> str:
    category = get_field(row, "category")
    if category not in SUBTASKS:
        raise ValueError(
            f"row {row.get('index', '?')}: category must be one of the {len(SUBTASKS)} subtasks, "
            f"got {category!r}"
        )
    return category


def chance(row: Mapping[str, Any]) -> float:
    """What a guess is worth: one option, or any set of some where several may be right."""
    options = len(options_of(row))
    return 1 / (2**options - 1) if subtask_of(row) == SEVERAL_ANSWERS else 1 / options


BENCHMARK = Benchmark(
    name="xlrs",
    title="XLRS-Bench-lite",
    build_prompt=build_prompt,
    subtask_of=subtask_of,
    read_reply=lambda row, reply: extract_letters(reply),
    grade=is_correct,
    chance=chance,
    max_new_tokens=64,
    subtasks=SUBTASKS,
    published=PUBLISHED,
    published_figure="macro over 13 subtasks",
)
