"""Scenes: their answers are true, cannot be guessed, and are drawn where they are said to be."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest

from geollava.common.boxes import boxes_in
from geollava.evaluate.benchmarks import xlrs, xlrs_grounding
from geollava.model.default_model import default_checkpoint
from geollava.scenes import box_rows, is_test, plan, training_row
from geollava.scenes.draw import draw
from geollava.scenes.questions import CHOICES_FOLLOW, DESCRIBE
from geollava.scenes.scene import COLORS, DIRECTIONS, LANDMARKS, PURPLE, REACH, color_name

SEEDS = range(600)


@pytest.fixture(scope="module")
def scenes():
    return [plan(seed, 2048) for seed in SEEDS]


def right(question):
    return question.choices[question.answer]


def quarter_of(scene, thing):
    """The quarter whose land use a thing stands on, None between them."""
    for quarter in range(4):
        across, down = 0.25 + 0.5 * (quarter % 2), 0.25 + 0.5 * (quarter // 2)
        if max(abs(thing.x / scene.size - across), abs(thing.y / scene.size - down)) < REACH + 0.04:
            return quarter
    return None


def only(things):
    (thing,) = things
    return thing


def test_answers_are_true(scenes):
    for scene in scenes:
        total, regional, kind, color, motion, relation, land, burning = scene.questions
        counted = total.text.removeprefix("How many ").split("s are")[0]
        assert right(total) == str(sum(thing.kind == counted for thing in scene.things))
        counted, place = regional.text.removeprefix("How many ").split("s are in the ")
        quarter = scene.land_uses.index(place.removesuffix("?"))
        kinds = [thing for thing in scene.things if thing.kind == counted]
        assert right(regional) == str(sum(quarter_of(scene, thing) == quarter for thing in kinds))
        assert None not in {quarter_of(scene, thing) for thing in kinds}

        purple = only(thing for thing in scene.things if thing.color == PURPLE)
        assert right(kind) == purple.kind
        assert right(motion) == ("moving" if purple.moving else "standing still")
        pad = only(thing for thing in scene.things if thing.kind == "helipad")
        across, along = DIRECTIONS[right(relation)]
        assert (purple.x - pad.x) * across > 0 < (purple.y - pad.y) * along
        assert right(land) == scene.land_uses[quarter_of(scene, pad)]

        fire = only(thing for thing in scene.things if thing.kind == "fire")
        others = [thing for thing in scene.things if thing is not fire]
        near = [math.dist((thing.x, thing.y), (fire.x, fire.y)) for thing in others]
        neighbor = others[near.index(min(near))]
        assert COLORS[right(color)] == neighbor.color
        assert sorted(near)[1] > 45 * scene.scale > 28 * scene.scale > min(near)
        assert right(burning) == scene.land_uses[quarter_of(scene, fire)]


def test_who_does_not_look_is_right_by_chance(scenes):
    train, test = ([s for s in scenes if is_test(s.seed) == part] for part in (False, True))
    by_category = {}
    for position in range(8):
        # The best guesses that train scenes teach: by letter, by rank among the sorted choices, by
        # word, and by word given the question's own words.
        guessers = [
            lambda q: "any",
            lambda q: q.text,
        ]
        marks = [
            lambda q, i: i,
            lambda q, i: sorted(q.choices).index(q.choices[i]),
            lambda q, i: q.choices[i],
        ]
        for key in guessers:
            for mark in marks:
                seen = Counter(
                    (
                        key(s.questions[position]),
                        mark(s.questions[position], s.questions[position].answer),
                    )
                    for s in train
                )
                hits = 0
                for scene in test:
                    q = scene.questions[position]
                    guess = max(range(len(q.choices)), key=lambda i: seen[key(q), mark(q, i)])
                    hits += guess == q.answer
                chance = 1 / len(q.choices)
                spread = math.sqrt(chance * (1 - chance) / len(test))
                assert hits / len(test) < chance + 4 * spread, q.category
        by_category[q.category] = Counter(s.questions[position].answer for s in scenes)
    assert len(by_category) == 8
    for category, answers in by_category.items():
        expected = len(scenes) / len(answers)
        off = sum((count - expected) ** 2 / expected for count in answers.values())
        assert off < 20, category  # chi-square of three degrees: one in 5,000


def test_things_stand_where_they_are_said_to_to_a_fraction_of_a_pixel():
    scene = plan(1, 1024)
    bare = plan(1, 1024)
    bare.things = [thing for thing in scene.things if thing.kind in LANDMARKS]
    change = np.asarray(draw(scene, "procedural"), float) - np.asarray(draw(bare, "procedural"))
    change = np.abs(change).sum(2)
    for thing in scene.things:
        if thing.kind in LANDMARKS:
            continue
        x, y = round(thing.x), round(thing.y)
        assert change[y - 12 : y + 12, x - 12 : x + 12].max() > 100, thing
    shifted = plan(1, 1024)
    shifted.things = [type(t)(t.kind, t.color, t.x + 0.25, t.y, t.heading) for t in scene.things]
    still = plan(1, 1024)
    still.things = [type(t)(t.kind, t.color, t.x, t.y, t.heading) for t in scene.things]
    here, there = (np.asarray(draw(s, "procedural"), float) for s in (still, shifted))
    assert 0 < np.abs(here - there).mean() < np.abs(here - np.roll(here, 1, axis=1)).mean()


def test_the_same_from_the_same_seed():
    first, again, other = (draw(plan(seed, 1024), "mixed") for seed in (4, 4, 6))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert plan(4, 1024) == plan(4, 1024) != plan(6, 1024)


def test_conversations_teach_the_questions_and_more(scenes):
    counts = Counter()
    for scene in scenes[:200]:
        texts = []
        for variant in (0, 1):
            said = training_row(scene, "image.jpg", variant)["conversations"]
            asked = [turn["value"].removeprefix("<image>\n") for turn in said[::2]]
            answers = dict(zip(asked, (turn["value"] for turn in said[1::2]), strict=True))
            assert {q.text: right(q) for q in scene.questions}.items() <= answers.items()
            assert len(asked) == len(answers) > 12
            assert (DESCRIBE in asked) == (variant == 0)
            lettered = [text for text in asked if CHOICES_FOLLOW in text]
            assert len(lettered) == 4
            for text in lettered:
                question, _, listed = text.partition(CHOICES_FOLLOW)
                assert f"({answers[text]}) {answers[question]}\n" in listed
            for text, answer in answers.items():
                if text.startswith("How many") and text.endswith("in the image?"):
                    kind = text.removeprefix("How many ").split("s are")[0]
                    assert answer == str(sum(thing.kind == kind for thing in scene.things))
                elif text.startswith("How many") and "choices" not in text:
                    counts[answer] += 1
            texts.append(asked)
        open_only = training_row(scene, "image.jpg", choices=False)["conversations"]
        assert not [turn for turn in open_only if "choices" in turn["value"]]
        assert texts[0] != texts[1]
    # No count is so common that a model learns to say it whatever it sees.
    assert max(counts.values()) < 0.35 * counts.total()


def test_written_scenes_are_training_data(run, tmp_path):
    options = ("--count", 3, "--size", 1100)
    assert run("scenes", tmp_path / "a", *options)[0] == 0
    assert run("scenes", tmp_path / "b", *options)[0] == 0
    parts = [
        json.loads((tmp_path / "a" / f"{name}.json").read_text()) for name in ("train", "test")
    ]
    assert [len(part) for part in parts] == [2, 8]
    assert run("scenes", tmp_path / "c", *options, "--part", "test", "--variants", 2)[0] == 0
    assert len(list((tmp_path / "c" / "images").iterdir())) == 1
    images = [{row["image"][0] for row in part} for part in parts]
    assert not images[0] & images[1]
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    code, out, _ = run("validate", tmp_path / "a" / "train.json", tmp_path / "a" / "test.json")
    assert code == 0, out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", 500), "at least 512 pixels times"),
        (("--scale", "nan"), "got 8064 for nan"),
        (("--ground", "mars"), "'mars' is not one of 'mixed', 'earth', 'procedural'"),
        (("--part", "exam"), "'exam' is not one of 'both', 'train', 'test'"),
    ],
)
def test_refusals(run, tmp_path, options, message):
    code, out, err = run("scenes", tmp_path / "a", *options)
    assert (code, out) == (2, "")
    assert message in err


def test_boxes_hold_what_they_are_said_to(scenes):
    for scene in scenes[:40]:
        asked, wanted = box_rows(scene, "image.jpg")
        things = scene.things[-2:]
        assert [len(asked), len(wanted)] == [4, 2]
        for thing, row in zip(things, wanted, strict=True):
            x1, y1, x2, y2 = row["answer"]
            assert 0 <= x1 < thing.x < x2 <= scene.size
            assert 0 <= y1 < thing.y < y2 <= scene.size
            assert max(x2 - x1, y2 - y1) <= 21 * scene.scale + 2  # a ship, in whole pixels
            assert xlrs_grounding.overlap(row, str(row["answer"])) == 1
        for thing, row in zip([things[0], things[0], things[1], things[1]], asked, strict=True):
            (box,) = boxes_in(row["question"])
            assert box[0] < thing.x < box[2]
            assert xlrs.BENCHMARK.problem_of(row) is None
            choice = dict(option[1:].split(") ") for option in row["multi-choice options"])
            assert choice[row["answer"]] in (thing.kind, color_name(thing))


def test_boxes_serve_ablation_and_grounding(run, tmp_path):
    data = tmp_path / "data"
    assert run("scenes", data, "--count", 1, "--size", 1100)[0] == 0
    rest = ("--model", default_checkpoint(), "--max-new-tokens", 1)
    code, _, err = run(
        "evaluate",
        "ablation",
        "xlrs",
        "--data",
        data / "boxes.json",
        "--out",
        tmp_path / "a",
        *rest,
    )
    assert code == 0, err
    assert json.loads((tmp_path / "a" / "ablation.json").read_text())["questions"] == 4
    code, _, err = run(
        "evaluate",
        "xlrs-grounding",
        "--data",
        data / "grounding.json",
        "--out",
        tmp_path / "g",
        *rest,
    )
    assert code == 0, err
    assert "2 of 2 rows answered" in err
