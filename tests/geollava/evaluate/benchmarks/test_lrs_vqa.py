"""LRS-VQA: answers by meaning, scores by source."""

from __future__ import annotations

import sys

import pytest

from geollava.evaluate.benchmarks import lrs_vqa
from tests.geollava.evaluate.parrot import replied


def test_lrs_vqa(tmp_path, monkeypatch):
    meanings = {"plane": {1, 2}, "airplane": {2}, "ship": {3}, "2": {4}, "two": {4}}
    monkeypatch.setattr(lrs_vqa, "synsets", lambda word: meanings.get(word, set()))
    rows = [
        {"question_id": i, "id": f"{source}_{i}", "image": "a.png", "text": f"{i}?",
         "ground_truth": truth, "category": category}
        for i, (source, truth, category) in enumerate([
            ("FAIR", "Airplane", "category"), ("FAIR", "ship", "category"),
            ("FAIR", "2", "count"), ("STAR", "urban", "rural or urban"),
        ])
    ]  # fmt: skip
    results, lines = replied("lrs-vqa", rows, ["plane", "Plane", "two", "Urban"], tmp_path)
    assert [line["credit"] for line in lines] == [1, 0, 1, 1]
    assert (results["micro"], results["macro"]) == (0.75, pytest.approx((0.5 + 1 + 1) / 3))
    assert results["other_scores"] == {
        "OA FAIR": pytest.approx(2 / 3), "AA FAIR": 0.75, "OA STAR": 1, "AA STAR": 1,
    }  # fmt: skip
    assert results["protocol"]["example"] == "0?"
    assert "| AA FAIR | 75.0 | - |" in (tmp_path / "o" / "results.md").read_text()


def test_wordnet_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(ImportError, match=r"nltk\.downloader wordnet"):
        lrs_vqa.is_correct({"answer": "ship"}, "boat")
    assert lrs_vqa.is_correct({"answer": "Ship"}, "ship")
