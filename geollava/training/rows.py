"""Training data: SuperRS-VQA and HighRS-VQA files in, typed rows out.

A file is a JSON list of `{"id", "image": [paths], "conversations": [{"from", "value"}, ...]}`, with
an `<image>` mark in a human's words for each image.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from geollava.common.readable import shortened, storable


class Turn(NamedTuple):
    """One question and its answer; the question holds an `<image>` mark for each of its images."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One conversation about some images.

    Attributes:
        file: the data file. number: the row's index in it, from 0.
        id: the row's own.
        images: a path for each image, in the order of their marks.
        turns: in the order in which they are said; at least one.
    """

    file: str
    number: int
    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]

    @classmethod
    def of(cls, entry: Any, file: Path, number: int, image_folder: Path) -> TrainingRow:
        """An entry of a data file as a row.

        Raises:
            ValueError: the entry has not the form of a row: what was expected and what came.
        """
        if (problem := form_problem(entry)) is not None:
            raise ValueError(problem)
        return cls(
            file=str(file),
            number=number,
            id=str(entry["id"]),
            # Many rows ask about one image: they share its name.
            images=tuple(sys.intern(str(image_folder / name)) for name in image_names(entry)),
            turns=turns_in(entry["conversations"]),
        )


def turns_in(conversation: Sequence[dict[str, str]]) -> tuple[Turn, ...]:
    """`{"from", "value"}` of a human and of gpt in turn -> question and answer in pairs."""
    words = [said["value"] for said in conversation]
    return tuple(map(Turn, words[::2], words[1::2]))


def read_json_rows(path: Path) -> list[Any]:
    """The list that a data file holds.

    Raises:
        ValueError: not there, not JSON (with line and column), not a list, or empty.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a readable JSON file: {error}") from error
    if not isinstance(rows, list) or not rows:
        got = "an empty list" if rows == [] else type(rows).__name__
        raise ValueError(f"{path} must hold a JSON list of rows, got {got}")
    return rows


def form_problem(entry: Any) -> str | None:
    """What keeps an entry from being a row at all, or None."""
    if not isinstance(entry, dict):
        return f"a row must be an object, got {type(entry).__name__}"
    if not isinstance(entry.get("id"), (str, int)) or isinstance(entry["id"], bool):
        return f"id must be a string or a number, got {entry.get('id')!r}"
    images = image_names(entry)
    if not all(isinstance(name, str) and name for name in images):
        return f"image must be a list of paths, got {entry.get('image')!r}"
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        return f"conversations must be a list of turns, got {turns!r}"
    for index, turn in enumerate(turns):
        place = f"conversations[{index}]"
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return f"{place} must be an object with from and value, got {turn!r}"
        expected = ("human", "gpt")[index % 2]
        if turn.get("from") != expected:
            return f"{place}.from must be {expected}, got {turn.get('from')!r}"
        if not turn["value"].strip():
            return f"{place}.value must say something, it is empty"
    if len(turns) % 2:
        return "conversations must end with an answer of gpt, got a question"
    for text in (str(entry["id"]), *images, *(turn["value"] for turn in turns)):
        if text != storable(text):
            return f"a row must be text that UTF-8 can write, got {shortened(ascii(text), 100)}"
    return None


def image_names(entry: dict[str, Any]) -> list[Any]:
    """`image` as a list: some rows hold one path, rows of text alone hold none."""
    images = entry.get("image")
    if images is None:
        return []
    return images if isinstance(images, list) else [images]
