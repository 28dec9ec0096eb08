"""A sweep over methods, budgets and the blind control."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from geollava.evaluate.models import geollava_model as own_model
from geollava.evaluate.predictions import read_predictions


def test_sweep(run, questions, guessing_checkpoint, tmp_path, monkeypatch):
    command = [
        "evaluate", "sweep", "xlrs", "--data", questions, "--model", guessing_checkpoint,
        "--max-new-tokens", 1, "--limit", 10, "--budgets", "24", "--out", tmp_path,
        "--methods", "background_anchored,smaller_image,random",
    ]  # fmt: skip
    code, _, err = run(*command)
    assert code == 0, err
    table = json.loads((tmp_path / "sweep.json").read_text())
    cells = {row["cell"]: row for row in table["cells"]}
    assert list(cells) == [
        "background_anchored-24", "smaller_image-24", "random-24", "blind",
    ]  # fmt: skip
    assert cells["random-24"]["tokens"] == 24 * 2
    assert cells["smaller_image-24"]["tokens"] == 2 * 576  # of no fewer crops is a canvas made
    assert cells["blind"]["tokens"] == 0
    difference = cells["random-24"]["score"] - cells["background_anchored-24"]["score"]
    assert cells["random-24"]["difference"] == pytest.approx(difference)
    assert cells["random-24"]["compared_with"] == "background_anchored-24"
    assert "difference" not in cells["background_anchored-24"]
    assert len({row["score"] for row in table["cells"]}) > 1
    replies = {
        name: read_predictions(tmp_path / "cells" / name / "predictions.jsonl")
        for name in ("smaller_image-24", "random-24")
    }
    wrong = [row.number for row in replies["smaller_image-24"] if row.credit < 1]
    found = [row.credit for row in replies["random-24"] if row.number in wrong]
    hard = cells["random-24"]["hard"]
    assert hard["rows"] == len(wrong) > 0
    assert hard["score"] == pytest.approx(sum(found) / len(wrong))
    assert "hard" not in cells["smaller_image-24"]
    assert "hard" not in cells["blind"]
    assert "| random | 24 | 48 |" in (tmp_path / "sweep.md").read_text()
    assert Image.open(tmp_path / "sweep.png").width > 500

    monkeypatch.setattr(own_model.GeoLlavaAnswerer, "see", lambda *_: pytest.fail("asked again"))
    before = (tmp_path / "sweep.json").read_text()
    assert run(*command)[0] == 0
    assert (tmp_path / "sweep.json").read_text() == before


def test_one_image_gives_no_interval(run, questions, guessing_checkpoint, tmp_path):
    rows = json.loads(questions.read_text())
    first = [row for row in rows if row["image"] == rows[0]["image"]]
    (questions.parent / "one.json").write_text(json.dumps(first))
    command = [
        "evaluate", "sweep", "xlrs", "--data", questions.parent / "one.json", "--model",
        guessing_checkpoint, "--max-new-tokens", 1, "--budgets", "24", "--out", tmp_path,
        "--methods", "background_anchored,random",
    ]  # fmt: skip
    code, _, err = run(*command)
    assert code == 0, err
    cells = json.loads((tmp_path / "sweep.json").read_text())["cells"]
    assert all(row["interval"] is None for row in cells)
    assert all(row.get("difference_interval") is None for row in cells)
    page = (tmp_path / "sweep.md").read_text()
    assert "One image gives no interval" in page
    assert "[" not in page.split("## Protocol")[0]
    assert Image.open(tmp_path / "sweep.png").width > 500
    report = (tmp_path / "cells" / "random-24" / "results.md").read_text()
    assert "[" not in report.split("## Protocol")[0]
