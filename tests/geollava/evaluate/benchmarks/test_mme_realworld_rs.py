"""MME-RealWorld, remote sensing: letters, both forms of the data, scores."""

from __future__ import annotations

import base64

import datasets
import pytest

from geollava.evaluate.benchmark import get_benchmark
from geollava.evaluate.benchmarks import mme_realworld_rs
from geollava.evaluate.rows import Data
from tests.geollava.conftest import noise
from tests.geollava.evaluate.parrot import replied

CHOICES = ["(A) red", "(B) dark green", "(C) blue", "(D) white", "(E) The image does not say."]
MME = {
    "Question_id": "RS/1",
    "Image": "a.png",
    "Text": "What color is the roof?",
    "Answer choices": CHOICES,
    "Ground truth": "B",
    "Category": "color",
    "Subtask": "Remote Sensing",
    "Task": "Perception",
}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("The best answer is (C).", "C"),
        ("It is dark green", ""),  # in no option as a whole; I is none of the letters
        ("dark green", "B"),
        ("GREEN, I think: D", "E"),  # a quirk: the first capital A to E
        ("", "A"),  # a quirk: in the first option as in all
        ("x " * 11, ""),
    ],
)
def test_mme_letters(reply, letter):
    row = {"multi-choice options": CHOICES, "answer": "B"}
    assert mme_realworld_rs.extract_letter(row, reply) == letter
    assert mme_realworld_rs.is_correct(row, reply) == (letter == "B")


def test_mme_realworld_rs(tmp_path):
    rows = [
        MME,
        {**MME, "Subtask": "Monitoring"},
        {**MME, "Category": "count", "Question_id": "RS/3"},
        {**MME, "Category": "count", "Question_id": "RS/4"},
    ]
    results, lines = replied("mme-realworld-rs", rows, ["B", "A", "B"], tmp_path)
    assert [line["index"] for line in lines] == ["RS/1", "RS/3", "RS/4"]
    assert results["per_subtask"] == {"color": 1, "count": 0.5}
    assert (results["micro"], results["macro"]) == (pytest.approx(2 / 3), 0.75)
    assert results["chance"]["micro"] == pytest.approx(0.2)
    assert (results["rows"]["in_data"], results["rows"]["of_benchmark"]) == (4, 3)
    assert results["protocol"]["example"] == (
        "What color is the roof? The choices are listed below: \n(A) red\n(B) dark green\n"
        "(C) blue\n(D) white\n(E) The image does not say.\nSelect the best answer to the above "
        "multiple-choice question based on the image. Respond with only the letter (A, B, C, D, "
        "or E) of the correct option.\nThe best answer is:"
    )


def test_mme_realworld_of_lmms_eval(tmp_path):
    noise(50, 40, 3).save(tmp_path / "a.png")
    row = {
        "index": 1,
        "bytes": base64.b64encode((tmp_path / "a.png").read_bytes()).decode(),
        "question": "Where?",
        "multi-choice options": CHOICES,
        "answer": "B",
        "category": "Perception/Remote Sensing",
        "l2-category": "position",
    }
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "d.parquet")
    data = Data(get_benchmark("mme-realworld-rs"), str(tmp_path / "d.parquet"))
    (example,) = data.examples(blind=False, limit=None)
    assert example.problem is None
    with data.open(example) as (scene,):
        assert scene.size == (50, 40)
