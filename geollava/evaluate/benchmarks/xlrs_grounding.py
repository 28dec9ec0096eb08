"""XLRS-Bench visual grounding (arXiv 2503.23771): where in the image is what a sentence names.

Rows have `index`, `image`, `question` (asked as it is, as the benchmark's authors say) and `answer`
(or `bbox`): the box [x1, y1, x2, y2] as four numbers, or a text that holds one. The hub's files, in
English and in Chinese, are said by others who read them to hold `bbox` in shares of the image, from
0 to 1; they could not be looked up here. A reply's first box counts, in the coordinates of the
answer: accuracy at an IoU of 0.5, and beside it at 0.7 and the mean IoU.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from geollava.common.boxes import Box, boxes_in
from geollava.evaluate.benchmark import Benchmark, Row, get_field

THRESHOLDS = (0.5, 0.7)


def find_box(text: str) -> Box | None:
    """The first box that a text holds, corners in order."""
    boxes = boxes_in(unicodedata.normalize("NFKC", text))  # Chinese has wide digits and brackets
    return in_order(boxes[0]) if boxes else None


def in_order(box: Box) -> Box:
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def answer_of(row: Mapping[str, Any]) -> Box:
    answer = get_field(row, "answer")
    try:
        # Numbers as they are: their text may be 1e-05, which no reply is written in.
        x1, y1, x2, y2 = [] if isinstance(answer, str) else map(float, answer)
        finite = all(map(math.isfinite, (x1, y1, x2, y2)))
        box = in_order((x1, y1, x2, y2)) if finite else None
    except (TypeError, ValueError):
        box = find_box(str(answer))
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
    columns={"question_id": "index", "bbox": "answer"},
    how_to="rows need a question and the box [x1, y1, x2, y2] as answer or bbox, as in "
    "grounding.json of geollava scenes",
    more=other_scores,
)
