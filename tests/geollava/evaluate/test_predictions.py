"""Files of predictions keep their keys and order, and those of earlier runs are read."""

from __future__ import annotations

import datetime
import json

import pytest

from geollava.evaluate.predictions import Prediction, read_predictions
from geollava.evaluate.results_folder import read_results
from tests.geollava.evaluate.parrot import replied

ANSWERED = (
    '{"row": 3, "index": "a/7", "images": ["a.png"], "subtask": "Counting", "answer": "B", '
    '"reply": "B", "understood": ["B"], "credit": 1.0, "confidence": 0.5, "dropped": 2, '
    '"crops": 1, "tokens_before": 576, "tokens_after": 24, '
    '"seconds": {"encode": 0.25, "answer": 0.5}}\n'
)
BAD = '{"row": 4, "index": 4, "images": [], "subtask": null, "answer": null, "problem": "none"}\n'


@pytest.mark.parametrize("line", [ANSWERED, BAD])
def test_lines_come_out_as_they_went_in(line, tmp_path):
    (tmp_path / "p.jsonl").write_text(line)
    (prediction,) = read_predictions(tmp_path / "p.jsonl")
    assert prediction.to_line() == line
    assert prediction.answered == (line == ANSWERED)
    assert prediction.graded().scene == (prediction.images[0] if prediction.images else 4)


def test_a_torn_line_is_left_out(tmp_path):
    (tmp_path / "p.jsonl").write_text(ANSWERED + BAD[:20])
    assert [made.number for made in read_predictions(tmp_path / "p.jsonl")] == [3]


@pytest.mark.parametrize("line", ["3", '{"index": 3}', '{"row": 3, "images": [], "letters": []}'])
def test_what_is_no_prediction_is_refused(line):
    with pytest.raises(ValueError, match="a prediction must be an object with row, index, images"):
        Prediction.from_json(json.loads(line))


def test_an_index_that_json_has_not():
    day = datetime.date(2025, 6, 1)
    line = Prediction(0, day, (), None, None, problem="none").to_line()
    assert json.loads(line)["index"] == "2025-06-01"


def test_a_reply_may_hold_any_line_separator(tmp_path):
    row = {
        "index": 0, "image": "a.png", "question": "?", "category": "Counting/Overall counting",
        "multi-choice options": ["(A) 1"], "answer": "A",
    }  # fmt: skip
    (tmp_path / "o").mkdir()
    replied("xlrs", [row], ["A\u2028or\x85B\n"], tmp_path)
    _, (prediction,) = read_results(tmp_path / "o")
    assert prediction.reply == "A\u2028or\x85B\n"


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "p.jsonl").write_text("[3]\n")
    with pytest.raises(ValueError, match=r"p\.jsonl: its lines must be predictions: a prediction"):
        read_predictions(tmp_path / "p.jsonl")
