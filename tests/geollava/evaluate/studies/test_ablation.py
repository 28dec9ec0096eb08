"""Tokens of the objects that are asked about, left out."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from geollava.answering.encoding import SceneTokens
from geollava.evaluate.studies import ablation
from geollava.evaluate.studies.ablation import remaining, tokens_in
from geollava.imagery import Canvas
from geollava.model.token_reduction import ReducedTokens


def kept_all(crops, grid):
    """Every token of some crops, kept as it is."""
    count = grid[0] * grid[1]
    indices = torch.arange(count).expand(crops, count)
    return ReducedTokens(
        features=torch.zeros(crops, count, 4),
        keep_indices=indices,
        valid=torch.ones(crops, count, dtype=torch.bool),
        assignment=indices,
        scores=torch.zeros(crops, count),
        grid_size=grid,
    )


def test_tokens_in_a_box():
    # An image of 200 x 100 pixels on a canvas of 400 x 400: scaled by 2, from row 100 on.
    # Cells of 50 pixels.
    tokens = SceneTokens(kept_all(4, (4, 4)), Canvas((200, 100), (400, 400), 200))
    inside = tokens_in([(30, 10, 60, 40)], tokens)
    # On the canvas x 60 to 120, y 120 to 180: columns 1 and 2, rows 2 and 3 of the first crop.
    assert inside[0].view(4, 4).nonzero().tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]
    assert not inside[1:].any()
    across = tokens_in([(90, 10, 110, 20)], tokens)
    assert across.any(1).tolist() == [True, True, False, False]
    assert not tokens_in([], tokens).any()


def test_as_many_random_tokens_elsewhere():
    inside = torch.zeros(3, 20, dtype=torch.bool)
    inside[1, 4:9] = True
    assert remaining("whole", inside, "?").all()
    assert torch.equal(remaining("without objects", inside, "?"), ~inside)
    lot = remaining("without random", inside, "?")
    assert (~lot).sum() == 5
    assert (lot | ~inside).all()
    assert torch.equal(lot, remaining("without random", inside, "?"))
    assert not torch.equal(lot, remaining("without random", inside, "another?"))


def test_ablation(run, questions, guessing_checkpoint, tmp_path):
    out = tmp_path / "out"
    rows = json.loads(questions.read_text())[:12]
    for row, box in zip(rows, [[0, 0, 90, 90], [100, 50, 180, 200]] * 6, strict=True):
        row["question"] = f"{row['question']} Look at {box}."
        row["image"] = [str(questions.parent / row["image"][0])]
    (tmp_path / "d.json").write_text(json.dumps([*rows, {**rows[0], "question": "No box?"}]))
    command = [
        "evaluate", "ablation", "xlrs", "--data", tmp_path / "d.json", "--out", out, "--model",
        guessing_checkpoint, "--max-new-tokens", 1, "--method", "spatial_pool",
    ]  # fmt: skip
    code, _, err = run(*command)
    assert code == 0, err
    table = json.loads((out / "ablation.json").read_text())
    assert table["protocol"]["method"] == "spatial_pool"
    assert table["questions"] == len(rows)
    whole, objects, lot = table["conditions"]
    assert [row["condition"] for row in (whole, objects, lot)] == list(ablation.CONDITIONS)
    assert whole["dropped_tokens"] == 0 < objects["dropped_tokens"] == lot["dropped_tokens"]
    assert objects["difference"] == pytest.approx(objects["micro"] - whole["micro"])
    lines = [
        [json.loads(line) for line in (out / "cells" / name / "predictions.jsonl").open()]
        for name in ("whole", "without-objects", "without-random")
    ]
    assert lines[0] != lines[1] != lines[2]
    assert "| without objects | " in (out / "ablation.md").read_text()
    assert Image.open(out / "ablation.png").width > 300

    plain = ["evaluate", "xlrs", *command[3:], "--out", tmp_path / "plain", "--limit", len(rows)]
    assert run(*plain)[0] == 0
    asked = [json.loads(line) for line in (tmp_path / "plain" / "predictions.jsonl").open()]
    assert [line["reply"] for line in lines[0]] == [line["reply"] for line in asked]
