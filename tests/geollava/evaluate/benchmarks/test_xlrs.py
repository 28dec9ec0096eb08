"""XLRS-Bench scores as the public evaluation gives them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geollava.evaluate.benchmarks import xlrs

ROW = {
    "index": 7,
    "question": "How many?",
    "multi-choice options": ["(A) 1", "(B) 2", "(C) 3", "(D) 4"],
    "category": "Counting/Overall counting",
    "answer": "B",
}


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads((golden / "xlrs_scoring.json").read_text())


def test_recorded_rows(recorded):
    assert len(recorded["samples"]) == 400
    for sample in recorded["samples"]:
        assert xlrs.build_prompt(sample["doc"]) == sample["prompt"]
        assert xlrs.extract_letters(sample["prediction"]) == sample["letters"]
        assert xlrs.is_correct(sample["doc"], sample["prediction"]) == sample["correct"]


def test_recorded_scores(recorded):
    rows = [sample["doc"] for sample in recorded["samples"]]
    scores = xlrs.score(rows, [sample["prediction"] for sample in recorded["samples"]])
    assert scores["micro"] == pytest.approx(recorded["micro"], abs=1e-12)
    assert scores["macro"] == pytest.approx(recorded["macro"], abs=1e-12)
    assert scores["per_subtask"] == pytest.approx(recorded["per_subtask"], abs=1e-12)
    assert sum(scores["rows_per_subtask"].values()) == 400


@pytest.mark.parametrize(
    ("reply", "letters"),
    [
        ("(b) and (D), not A", ["B", "D"]),  # parentheses first, in either case
        ("The correct answer is C", ["C"]),
        ("I know. The answer is B.", ["B"]),  # the phrase goes, wherever it stands
        ("Best answer:Best option: C", ["C"]),  # two phrases that the public code glues together
        ("Best answer: C", ["A", "B", "C", "E"]),  # which it therefore does not know by themselves
        ("Both A and B", ["A", "B", "D"]),  # a quirk: the d of "and"
        ("none of them", []),
        ("F", []),
        ("", []),
    ],
)
def test_letters(reply, letters):
    assert xlrs.extract_letters(reply) == letters


@given(st.text())
def test_letters_are_some_of_five_in_order(reply):
    letters = xlrs.extract_letters(reply)
    assert letters == sorted(set(letters) & set("ABCDE"))


def test_a_subtask_without_rows_counts_zero():
    scores = xlrs.score([ROW, {**ROW, "index": 8}], ["B", "A"])
    assert scores["micro"] == 0.5
    assert scores["macro"] == pytest.approx(0.5 / 13)
    assert scores["rows_per_subtask"]["Counting/Overall counting"] == 2


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"row 7: category must be one of the 13 .* 'Counting/Up'"):
        xlrs.build_prompt({**ROW, "category": "Counting/Up"})
    with pytest.raises(ValueError, match="row 7 must have 'answer'"):
        xlrs.score([{key: value for key, value in ROW.items() if key != "answer"}], ["A"])
    with pytest.raises(ValueError, match="1 rows need as many predictions, got 2"):
        xlrs.score([ROW], ["A", "B"])
    with pytest.raises(ValueError, match="at least one row"):
        xlrs.score([], [])
