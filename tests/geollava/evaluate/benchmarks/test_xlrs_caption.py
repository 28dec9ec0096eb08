"""XLRS-Bench captioning: descriptions beside a reference."""

from __future__ import annotations

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


def test_scenes_have_no_captions(run, questions, tmp_path):
    """`test.json` of `geollava scenes` has an answer, which is a letter."""
    options = ["--data", questions, "--out", tmp_path / "out"]
    code, out, err = run("evaluate", "xlrs-caption", *options)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert "'answer' must be a description, got " in lines[0]
    assert "beside 'multi-choice options'; rows need a caption" in lines[0]
    assert "geollava scenes writes none" in lines[0]
