"""The checkpoint that is used when none is named: the small one that is shipped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from geollava.answering.session import Session
from geollava.evaluate.benchmarks.scenes_open import is_correct
from geollava.model.default_model import default_checkpoint
from geollava.scenes import is_test, plan, question_rows
from geollava.scenes.draw import draw

SIZE, SCALE = 1344, 1.3
SEEDS = range(90_000, 90_050, 5)  # of no scene that the model learned from or is scored on
# What its card says that it has learned.
LEARNED = ("Anomaly", "Regional Land use", "classification", "color", "motion")


@pytest.fixture(scope="module")
def seen(default_pair):
    """(scene, what a session sees of it) of each seed."""
    assert all(is_test(seed) for seed in SEEDS)
    scenes = [plan(seed, SIZE, SCALE) for seed in SEEDS]
    session = Session.of(*default_pair)
    return [(scene, session.see(draw(scene))) for scene in scenes]


def test_small_enough_to_ship_and_with_a_card():
    files = list(default_checkpoint().iterdir())
    assert sum(file.stat().st_size for file in files) <= 20 * 2**20
    assert "README.md" in {file.name for file in files}
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_its_score_is_said_for_both_scales():
    results = Path(__file__).parents[3] / "benchmarks" / "results" / "small_model"
    card = (default_checkpoint() / "README.md").read_text()
    trained = json.loads((results / "sweep.json").read_text())["cells"][0]
    default = json.loads((results / "default_scale.json").read_text())
    for score, (low, high) in (
        (trained["score"], trained["interval"]),
        (default["macro"], default["intervals"]["macro"]),
    ):
        assert f"{100 * score:.1f}" in card
        assert f"[{100 * low:.1f}, {100 * high:.1f}]" in card
    assert "--scale 1.3" in card


def test_answers_about_scenes_it_has_not_seen(seen):
    hits = chance = variance = 0.0
    for scene, shown in seen:
        for question, row in zip(scene.questions, question_rows(scene, ""), strict=True):
            if any(task in question.category for task in LEARNED):
                hits += is_correct(row, shown.ask(question.text, max_new_tokens=8).text)
                guess = 1 / len(question.choices)
                chance, variance = chance + guess, variance + guess * (1 - guess)
    assert hits > chance + 4 * math.sqrt(variance)


def test_keeps_what_is_small(seen):
    kept = things = 0
    for scene, shown in seen:
        result = shown.encode()[0].kept
        mask = torch.zeros_like(result.assignment, dtype=torch.bool)
        mask.scatter_(1, result.keep_indices, result.valid)
        for thing in scene.things:
            column, row = int(thing.x), int(thing.y)
            crop = row // 336 * (SIZE // 336) + column // 336
            kept += bool(mask[crop, row % 336 // 14 * 24 + column % 336 // 14])
            things += 1
    # 24 of 576 at random keep one in 24.
    assert kept / things > 0.8
