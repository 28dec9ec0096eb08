"""Scenes of any content, and questions about them in many words."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from geollava.evaluate.benchmark import get_benchmark
from geollava.scenes import ask_in_words, facts_of, is_test, plan_varied
from geollava.scenes.families import FAMILIES, UNKNOWN
from geollava.scenes.phrasing import families, phrasings, read_templates
from geollava.scenes.scene import KINDS, LAND_USES, LANDMARKS, PALETTE, VEHICLES
from geollava.training.validation import check_files

FREE = Path(__file__).with_name("free_questions.json")


@pytest.fixture(scope="module")
def scenes():
    return [plan_varied(seed, size) for seed in range(300) for size in (672, 1344)]


def asked_of(scene, seed=0, part="all", letters=0.3):
    return ask_in_words(facts_of(scene), np.random.default_rng(seed), part, letters)


def test_every_family_has_twenty_wordings_and_every_fifth_is_held_out():
    assert families() == tuple(FAMILIES)
    for family in families():
        every, train, test = (phrasings(family, part) for part in ("all", "train", "test"))
        assert len({text for text, _ in every}) == len(every) >= 20
        assert [text for text, _ in test] == [text for text, _ in every[4::5]]
        assert set(train) | set(test) == set(every)
        assert not set(train) & set(test)
    with pytest.raises(ValueError, match=r"family must be one of count, .*, got 'cooking'"):
        phrasings("cooking")
    with pytest.raises(ValueError, match="part must be one of all, train, test, got 'some'"):
        phrasings("count", "some")


def test_both_spellings_are_asked_in_and_one_is_answered_in(scenes):
    asked = [one for seed, scene in enumerate(scenes) for one in asked_of(scene, seed)]
    words = Counter(word.strip("?.,:") for one in asked for word in one.question.lower().split())
    for american, british in (("color", "colour"), ("airplane", "aeroplane"), ("truck", "lorry")):
        assert words[american] > 50 < words[british]
    said = " ".join(one.answer for one in asked)
    assert "airplane" in said
    assert not any(word in said for word in ("colour", "aeroplane", "lorry"))


def test_a_scene_has_what_may_be_asked(scenes):
    scales = [scene.scale for scene in scenes]
    assert 0.7 <= min(scales) < 0.75 < 1.9 < max(scales) <= 2
    counts = Counter(
        sum(thing.kind == kind for thing in scene.things) for scene in scenes for kind in KINDS
    )
    assert set(counts) == set(range(13))
    for landmark in LANDMARKS:
        share = sum(landmark in {t.kind for t in scene.things} for scene in scenes) / len(scenes)
        assert 0.5 < share < 0.9
    for scene in scenes:
        spots = [(thing.x, thing.y) for thing in scene.things]
        assert all(0 < value < scene.size for spot in spots for value in spot)
        near = [math.dist(a, b) for i, a in enumerate(spots) for b in spots[:i]]
        assert min(near, default=math.inf) > 19 * scene.scale  # a thing beside a fire
    assert plan_varied(7, 672) == plan_varied(7, 672) != plan_varied(8, 672)


def nearest(scene, mark):
    """The thing nearest to a landmark of which there is one."""
    others = [thing for thing in scene.things if thing is not mark]
    return min(others, key=lambda thing: math.dist((thing.x, thing.y), (mark.x, mark.y)))


def test_answers_are_true(scenes):
    """Of questions in their first words, from the scene's own things alone."""
    checked = Counter()
    for seed, scene in enumerate(scenes):
        marks = {mark: [t for t in scene.things if t.kind == mark] for mark in LANDMARKS}
        for one in asked_of(scene, seed, letters=0):
            kinds = [kind for kind in KINDS if f" {kind}" in one.question]
            colors = [color for color in PALETTE if f" {color}" in one.question]
            things = [
                thing
                for thing in scene.things
                if (not kinds or thing.kind == kinds[-1])
                and (not colors or thing.color == PALETTE[colors[0]])
                and thing.kind in KINDS
            ]
            if one.family == "count" and kinds:
                assert one.answer == str(len(things)), one
            elif one.family == "presence" and kinds:
                assert one.answer == ("yes" if things else "no"), one
            elif one.family in ("motion", "moving") and kinds:
                assert kinds[-1] in VEHICLES
                truth = {
                    "moving": ["standing still", "moving"],
                    "motion": ["standing still", "moving"],
                }
                words = truth[one.family] if one.family == "motion" else ["no", "yes"]
                expected = words[things[0].moving] if things else UNKNOWN
                assert one.answer == expected, one
            elif one.family == "color" and kinds:
                name = next(
                    (n for n, value in PALETTE.items() if things and value == things[0].color),
                    UNKNOWN,
                )
                assert one.answer == name, one
            elif one.family == "color beside":
                expected = UNKNOWN
                if marks["fire"]:
                    color = nearest(scene, marks["fire"][0]).color
                    expected = next(name for name, value in PALETTE.items() if value == color)
                assert one.answer == expected, one
            elif one.family == "direction" and kinds and marks["helipad"] and things:
                pad, thing = marks["helipad"][0], things[0]
                north = "north" if thing.y < pad.y else "south"
                assert one.answer == f"{north}-{'west' if thing.x < pad.x else 'east'}", one
                assert thing.x // 336 == pad.x // 336 or scene.size > 672
            elif one.family == "fire":
                assert (one.answer == UNKNOWN) == (not marks["fire"])
                if marks["fire"]:
                    fire = marks["fire"][0]
                    quarter = 2 * (fire.y > scene.size / 2) + (fire.x > scene.size / 2)
                    assert one.answer == scene.land_uses[int(quarter)]
            else:
                continue
            checked[one.family] += 1
    assert all(checked[family] > 30 for family in FAMILIES if checked[family] or family == "count")
    assert len(checked) == 8


def test_letters_stand_for_the_same_answer(scenes):
    for seed, scene in enumerate(scenes[:100]):
        asked = asked_of(scene, seed, letters=1.0)
        for one, again in itertools.pairwise(asked):
            if again.letters:
                assert not one.letters
                assert again.choices["ABCD".index(again.answer)] == one.answer
                assert all(choice in again.question for choice in again.choices)


def test_no_answer_is_so_common_that_who_does_not_look_is_often_right(scenes):
    answers = defaultdict(Counter)
    for seed, scene in enumerate(scenes):
        for one in asked_of(scene, seed):
            if one.family != "describe":
                answers["letters" if one.letters else one.family][one.answer] += 1
    best = {family: max(found.values()) / found.total() for family, found in answers.items()}
    two = ("presence", "motion", "moving")
    assert all(share < (0.65 if family in two else 0.45) for family, share in best.items()), best
    assert np.mean(list(best.values())) < 0.4
    unknown = sum(found[UNKNOWN] for found in answers.values())
    assert 0.05 < unknown / sum(found.total() for found in answers.values()) < 0.25


def test_written_scenes_serve_training_and_evaluation(run, tmp_path):
    options = ("--layout", "varied", "--size", 672, "--ground", "procedural", "--count", 6)
    assert run("scenes", tmp_path, *options)[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["test.json", "train.json"]
    report, rows = check_files(
        [tmp_path / "train.json"], select_canvas=lambda width, height: (width, height)
    )
    assert (len(rows), report.problems) == (4, [])
    held_out = {text for family in families() for text, _ in phrasings(family, "test")}
    plain = {text for text in held_out if "{" not in text}
    asked = {turn.question for found in rows for turn in found.row.turns}
    assert plain
    assert not plain & asked

    benchmark = get_benchmark("scenes-words")
    test = json.loads((tmp_path / "test.json").read_text())
    assert {is_test(int(row["id"].split("-")[1])) for row in test} == {True}
    for row in test:
        assert benchmark.problem_of(row) is None
        assert benchmark.grade(row, f" {row['answer']}.") == 1
        assert benchmark.grade(row, "no idea") == 0
        assert 0 <= benchmark.chance(row) <= 0.5


@pytest.mark.parametrize(
    ("answer", "reply", "credit"),
    [("5", "5", 1), ("5", "6", 0), ("6", "7", 1), ("6", "5", 1), ("12", "10", 0), ("3", "many", 0)],
)
def test_counts_are_exact_to_five_and_within_one_above(answer, reply, credit):
    row = {"question": "How many?", "family": "count", "answer": answer, "choices": ["1"]}
    benchmark = get_benchmark("scenes-words")
    assert benchmark.grade(row, reply) == credit
    described = row | {"family": "describe", "answer": f"{answer} cars, 1 fire"}
    assert benchmark.grade(described, f"{reply} cars, 1 fire") == credit
    assert not benchmark.grade(described, f"{answer} cars")
    assert not benchmark.grade(row | {"letters": True, "answer": "B"}, "A")
    assert benchmark.grade(row | {"letters": True, "answer": "B"}, "(B)")


def test_free_questions_are_true_and_in_no_words_of_a_template():
    rows = json.loads(FREE.read_text())
    assert len(rows) == 40
    templates = [text for family in families() for text, _ in phrasings(family)]
    fixed = {max(text.replace("}", "{").split("{")[::2], key=len).strip() for text in templates}
    fixed = {words.lower() for words in fixed if len(words.split()) > 3}
    for row in rows:
        assert is_test(row["seed"])
        assert not [words for words in fixed if words in row["question"].lower()], row
        facts = facts_of(plan_varied(row["seed"], row["size"]))
        kinds = {fact.kind for fact in facts.things}
        counts = Counter(fact.kind for fact in facts.things)
        possible = {str(count) for count in counts.values()} | {"yes", "no", UNKNOWN}
        possible |= {str(n) for n in Counter((f.kind, f.color) for f in facts.things).values()}
        possible |= kinds | {*PALETTE, *LAND_USES, "moving", "standing still"}
        possible |= {fact.direction for fact in facts.things if fact.direction}
        assert row["answer"] in possible, row


@pytest.mark.parametrize(
    ("size", "scale", "message"),
    [(600, None, "size must be at least 672"), (672, 3.0, "scale must be above 0 and at most 2")],
)
def test_refusals(size, scale, message):
    with pytest.raises(ValueError, match=message):
        plan_varied(0, size, scale)


def test_templates_fill_every_name():
    names = {"thing", "things", "a_thing", "color", "colour", "land", "helipad", "fire"}
    for family in families():
        for text in read_templates()[family]:
            assert {part.split("}")[0] for part in text.split("{")[1:]} <= names, text
