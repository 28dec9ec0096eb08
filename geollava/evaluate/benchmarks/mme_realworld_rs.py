"""MME-RealWorld, its remote-sensing part (arXiv 2408.13257): position, color and count.

Two forms of the data are read, whole or this part alone:

- the benchmark's own JSON list: `Question_id`, `Image` (a path), `Text`, `Answer choices` (list of
  "(A) ..." to "(E) ..."), `Ground truth` (a letter), `Category` (position, color, count), `Subtask`
  ("Remote Sensing" here) and `Task`;
- the Parquet of lmms-eval: `index`, `bytes` (base64), `question`, `multi-choice options`, `answer`,
  `category` ("Perception/Remote Sensing") and `l2-category`.

Prompt and letters are those of the benchmark's own evaluation, quirks included: an empty reply is
found in the first option and counts as A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from geollava.evaluate.benchmark import Benchmark, get_field, options_of

DOMAIN = "remote sensing"
REQUEST = (
    "Select the best answer to the above multiple-choice question based on the image. Respond with "
    "only the letter (A, B, C, D, or E) of the correct option.\nThe best answer is:"
)
# Taken out wherever they stand, for their own letters would count; the last two are two each, which
# the public evaluation lacks a comma between.
PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)
LONG = 10  # words; a longer reply without a capital letter names none


def build_prompt(row: Mapping[str, Any]) -> str:
    options = "".join(f"{option}\n" for option in options_of(row))
    return f"{get_field(row, 'question')} The choices are listed below: \n{options}{REQUEST}"


def extract_letter(row: Mapping[str, Any], reply: str) -> str:
    """The first capital A to E, else the first option that holds the reply; "" is none."""
    text = reply.strip()
    for phrase in PHRASES:
        text = text.replace(phrase, "")
    letter = re.search("[A-E]", text)
    if letter:
        return letter[0]
    if len(text.split()) > LONG:
        return ""
    return next((option[1:2] for option in options_of(row) if text.lower() in option.lower()), "")


def is_correct(row: Mapping[str, Any], reply: str) -> bool:
    return extract_letter(row, reply) == get_field(row, "answer")


def subtask_of(row: Mapping[str, Any]) -> str:
    """What a question is about; all that is called an attribute is one."""
    kind = str(get_field(row, "l2-category")).lower()
    return f"{kind.split('/')[0]}/attribute" if "attribute" in kind else kind


def is_remote_sensing(row: Mapping[str, Any]) -> bool:
    return DOMAIN in str(row.get("category")).lower().replace("_", " ")


BENCHMARK = Benchmark(
    name="mme-realworld-rs",
    title="MME-RealWorld-RS",
    build_prompt=build_prompt,
    subtask_of=subtask_of,
    read_reply=extract_letter,
    grade=is_correct,
    chance=lambda row: 1 / len(options_of(row)),
    max_new_tokens=64,
    columns={
        "Question_id": "index",
        "Text": "question",
        "Answer choices": "multi-choice options",
        "Ground truth": "answer",
        "Subtask": "category",
        "Category": "l2-category",
    },
    belongs=is_remote_sensing,
    how_to="rows need the Subtask (or category) Remote Sensing, as in the JSON of MME-RealWorld",
)
