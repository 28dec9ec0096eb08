"""XLRS-Bench grounding: boxes that overlap."""

from __future__ import annotations

import pytest

from geollava.evaluate.benchmarks import xlrs_grounding
from tests.geollava.evaluate.parrot import replied


@pytest.mark.parametrize(
    ("reply", "overlap"),
    [
        ("[0, 0, 10, 10]", 1.0),
        ("It is at (10, 10), (0, 0).", 1.0),
        ("[0, 0, 10, 6]", 0.6),
        ("[5, 0, 15, 10] or [0, 0, 10, 10]", 1 / 3),
        ("[20, 20, 30, 30]", 0.0),
        ("upper left", 0.0),
        ("它位于（０，０），（10，6）。", 0.6),  # noqa: RUF001
    ],
)
def test_overlap(reply, overlap):
    for answer in ([0, 0, 10, 10], [[0, 0, 10, 10]], "[[0, 0, 10, 10]]"):
        assert xlrs_grounding.overlap({"answer": answer}, reply) == pytest.approx(overlap)


def test_an_answer_in_shares_of_the_image():
    row = {"answer": [0.00001, 0.0, 0.5, 0.25]}
    assert xlrs_grounding.overlap(row, "[0.0, 0.0, 0.5, 0.25]") == pytest.approx(0.49999 / 0.5)


@pytest.mark.parametrize("answer", ["1234", [1, 2, 3], [0, 0, float("nan"), 1], 7])
def test_what_is_no_box_is_refused(answer):
    with pytest.raises(ValueError, match="'answer' must be a box"):
        xlrs_grounding.answer_of({"answer": answer})


def test_grounding(tmp_path):
    rows = [{"image": ["a.png"], "question": f"Find {i}", "answer": [0, 0, 10, 10]} for i in "abc"]
    rows.append({**rows[0], "answer": "in the middle"})
    rows[1]["bbox"] = rows[1].pop("answer")  # as the hub's files are said to name it
    replies = ["[0, 0, 10, 6]", "[0, 0, 10, 8]", "no"]
    with pytest.raises(ValueError, match=r"row 3 \(index 3\): 'answer' must be a box"):
        replied("xlrs-grounding", rows, replies, tmp_path)
    results, lines = replied("xlrs-grounding", rows, replies, tmp_path, on_bad_rows="skip")
    assert results["micro"] == pytest.approx(2 / 3)
    assert results["other_scores"] == {
        "accuracy at IoU 0.5": pytest.approx(2 / 3),
        "accuracy at IoU 0.7": pytest.approx(1 / 3),
        "mean IoU": pytest.approx(1.4 / 3),
    }
    assert lines[0]["understood"] == [0, 0, 10, 6]
