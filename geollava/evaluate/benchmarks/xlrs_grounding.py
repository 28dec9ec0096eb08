"""XLRS-Bench visual grounding (arXiv 2503.23771): where in the image is what a sentence names.

Rows are expected as `index`, `image`, `question` (asked as it is) and `answer`: the box
[x1, y1, x2, y2] as four numbers, or a text that holds one. Whether the hub's files name their
columns so could not be looked up. A reply's first box counts, in the coordinates of the answer:
accuracy at an IoU of 0.5, and beside it at 0.7 and the mean IoU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from geollava.common.boxes import Box, boxes_in
from geollava.evaluate.benchmark import Benchmark, Row, get_field

THRESHOLDS = (0.5, 0.7)


def find_box(text: str) -> Box | None:
    """The first box that a text holds, corners in order."""
    boxes = boxes_in(text)
    if not boxes:
        return None
    x1, y1, x2, y2 = boxes[0]
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def answer_of(row: Mapping[str, Any]) -> Box:
    answer = get_field(row, "answer")
    box = find_box(answer if isinstance(answer, str) else str(list(answer)))
    if box is None:
        raise ValueError(f"'answer' must be a box [x1, y1, x2, y2], got {answer!r}")
    return box


def overlap(row: Mapping[str, Any], reply: str) -> float:
    """Intersection over union of the answer and the reply's box; 0 without one."""
    right, said = answer_of(row), find_box(reply)
    if said is None:
        return 0.0
    width = min(right[2], said[2]) - max(right[0], said[0])
    height = min(right[3], said[3]) - max(right[1], said[1])
    inner = max(width, 0) * max(height, 0)
    outer = area(right) + area(said) - inner
    return inner / outer if outer else 0.0


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def other_scores(
    rows: Sequence[Row], replies: Sequence[str], credit: Sequence[float]
) -> dict[str, float]:
    overlaps = [overlap(row, reply) for row, reply in zip(rows, replies, strict=True)]
    shares = {
        f"accuracy at IoU {least}": sum(value >= least for value in overlaps) / len(overlaps)
        for least in THRESHOLDS
    }
    return {**shares, "mean IoU": sum(overlaps) / len(overlaps)}


BENCHMARK = Benchmark(
    name="xlrs-grounding",
    title="XLRS-Bench visual grounding",
    build_prompt=lambda row: str(get_field(row, "question")),
    subtask_of=lambda row: str(row.get("category") or "visual grounding"),
    read_reply=lambda row, reply: find_box(reply),
    grade=lambda row, reply: overlap(row, reply) >= THRESHOLDS[0],
    chance=lambda row: 0.0,
    max_new_tokens=64,
    columns={"question_id": "index"},
    how_to="rows need a question and the box [x1, y1, x2, y2] as answer, as in grounding.json of "
    "geollava scenes",
    more=other_scores,
)
