"""The questions of `geollava scenes` without their choices."""

from __future__ import annotations

from geollava.evaluate.benchmark import get_benchmark
from geollava.scenes import plan, question_rows


def test_scenes_asked_without_choices():
    benchmark = get_benchmark("scenes-open")
    for row in question_rows(plan(5, 1100), "scene.jpg"):
        choices = [choice[4:] for choice in row["multi-choice options"]]
        right = choices["ABCD".index(row["answer"])]
        assert benchmark.build_prompt(row) == row["question"]
        assert [benchmark.grade(row, f" {choice}.") for choice in choices] == [
            choice == right for choice in choices
        ]
        assert not benchmark.grade(row, row["answer"])
        assert benchmark.chance(row) == 1 / len(choices)
        assert benchmark.problem_of(row) is None
        assert "none of its choices is E" in benchmark.problem_of(row | {"answer": "E"})
        assert "is no task of the scenes" in benchmark.problem_of(row | {"category": "Cooking"})
