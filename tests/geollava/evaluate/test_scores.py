"""Intervals by scene, and differences of paired rows."""

from __future__ import annotations

import pytest

from geollava.evaluate import scores


def test_intervals_are_by_scene():
    def graded(scenes, per_scene):
        return [
            scores.Graded("a", float(scene % 2), scene, 0.5)
            for scene in range(scenes)
            for _ in range(per_scene)
        ]

    def width(rows):
        low, high = scores.summarize(rows, ("a", "b"))["intervals"]["micro"]
        return high - low

    many, few = graded(400, 1), graded(20, 20)  # as many rows, right to one half
    assert width(many) == pytest.approx(4 * 0.5 / 400**0.5, rel=0.15)
    assert width(few) == pytest.approx(4 * 0.5 / 20**0.5, rel=0.15)
    summary = scores.summarize(few, ("a", "b"))
    assert (summary["micro"], summary["macro"], summary["macro_present"]) == (0.5, 0.25, 0.5)
    assert summary["rows_per_subtask"] == {"a": 400, "b": 0}
    assert summary["intervals"]["per_subtask"]["b"] is None


def test_difference_pairs_the_rows():
    right = [scores.Graded("a", float(i % 3 > 0), i, 0) for i in range(90)]
    better = [scores.Graded("a", float(i % 3 > 0 or i < 30), i, 0) for i in range(90)]
    gap, (low, high) = scores.difference(better, right, None, "micro")
    assert gap == pytest.approx(10 / 90)
    assert 0 < low < gap < high < 0.2
    assert scores.difference(right, right, None, "micro") == (0, [0, 0])
    with pytest.raises(ValueError, match="same rows"):
        scores.difference(right, right[1:], None, "micro")
