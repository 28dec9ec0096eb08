"""XLRS-Bench captioning: descriptions beside a reference."""

from __future__ import annotations

import math

import pytest

from geollava.evaluate.benchmarks import xlrs_caption
from tests.geollava.evaluate.parrot import replied


def test_captions(tmp_path):
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    reference = "A wide harbor with many white ships and a long pier in the middle of the image."
    rows = [{"image": "a.png", "caption": reference}, {"image": "a.png", "caption": reference}]
    results, lines = replied("xlrs-caption", rows, [reference, "A long pier"], tmp_path)
    assert lines[0]["credit"] == 1
    assert lines[1]["credit"] == pytest.approx(2 * (1 * 3 / 17) / (1 + 3 / 17))  # 3 of 17 words
    assert results["micro"] == pytest.approx((1 + lines[1]["credit"]) / 2)
    other = results["other_scores"]
    assert list(other) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "chrF"]
    assert 0 < other["BLEU-4"] < other["BLEU-1"] < 1
    assert results["protocol"]["example"] == xlrs_caption.REQUEST


def test_chinese_captions_are_read_by_characters(tmp_path):
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    reference = "港口里有许多白色的船。"
    rows = [{"image": "a.png", "answer": reference}, {"image": "a.png", "answer": reference}]
    results, lines = replied("xlrs-caption", rows, ["港口里有白色的船。", "A harbor"], tmp_path)
    assert lines[0]["credit"] == pytest.approx(2 * 1 * 9 / 11 / (1 + 9 / 11))  # 9 of 11 characters
    assert lines[1]["credit"] == 0
    # 9 of the 11 words that the replies have, which are 11 fewer than the references have.
    assert results["other_scores"]["BLEU-1"] == pytest.approx(9 / 11 * math.exp(1 - 22 / 11))


def test_the_nearest_of_several_references_counts(tmp_path):
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    rows = [
        {"image": "a.png", "answer": ["A wide harbor", "Many white ships", " "]},
        {"image": "a.png", "answer": ["A wide harbor"]},
    ]
    results, lines = replied("xlrs-caption", rows, ["Many white ships", "A harbor"], tmp_path)
    assert [line["credit"] for line in lines] == [1, pytest.approx(2 * 2 / 3 / (1 + 2 / 3))]
    # All 5 words stand in a reference; the nearest lengths are 3 and 3.
    assert results["other_scores"]["BLEU-1"] == pytest.approx(math.exp(1 - 6 / 5))


@pytest.mark.parametrize("answer", [7, [], ["", " "], [3], ""])
def test_what_is_no_description_is_refused(answer):
    with pytest.raises(ValueError, match="'answer' must be a description, got "):
        xlrs_caption.references_of({"answer": answer})


def test_scenes_have_no_captions(run, questions, tmp_path):
    """`test.json` of `geollava scenes` has an answer, which is a letter."""
    options = ["--data", questions, "--out", tmp_path / "out"]
    code, out, err = run("evaluate", "xlrs-caption", *options)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert "'answer' must be a description, got " in lines[0]
    assert "beside 'multi-choice options'; rows need a caption" in lines[0]
    assert "geollava scenes writes none" in lines[0]
