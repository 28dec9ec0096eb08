"""`geollava evaluate rescore`: recorded cases of the public protocol, the others by hand."""

from __future__ import annotations

import json

import pytest

from geollava.evaluate.benchmark import get_benchmark
from geollava.evaluate.rows import Data
from geollava.evaluate.studies.rescore import rescore
from tests.geollava.commands.conftest import check_refusal
from tests.geollava.evaluate.parrot import replied

MOTION = "Object properties/Object motion state"
COLOR = "Object properties/Object color"
LAND = "Land use classification/Overall Land use classification"
TEXTS = ["(A) a car", "(B) a truck", "(C) a boat", "(D) nothing"]


def line(number, reply, answer="A", subtask=MOTION, **changes):
    return {
        "row": number, "index": f"i{number}", "images": [f"{number}.png"], "subtask": subtask,
        "answer": answer, "reply": reply, "understood": [], "credit": 0.0, "confidence": 0.5,
        "crops": None, "tokens_before": None, "tokens_after": None, **changes,
    }  # fmt: skip


def not_asked(number, subtask=MOTION):
    return {**{k: line(number, "")[k] for k in ("row", "index", "images", "answer")},
            "subtask": subtask, "problem": "no image"}  # fmt: skip


def write(folder, lines, name="predictions.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# Right by (published and VLMEvalKit, lmms-eval, VLMEvalKit's matching, UHR-BAT):
SEPARATING = [
    line(0, "A"),  # all
    line(1, "<think>B?</think>A"),  # lmms-eval alone
    line(2, "I see a car"),  # the matching alone
    line(3, "it is (A), a car"),  # all but UHR-BAT, which reads C too
    line(4, "AB", answer="AB", subtask=LAND),  # all but the matching, which reads one letter
    line(5, "a, b", answer="AB", subtask=LAND),  # UHR-BAT alone: no capital
    line(6, "C", subtask=COLOR),  # none
]


@pytest.fixture
def data(tmp_path):
    """What the separating replies were asked; the motion states are of two second categories."""
    rows = [
        {
            "index": each["index"], "image": "x.png", "question": "?", "category": each["subtask"],
            "multi-choice options": TEXTS, "answer": each["answer"],
            "l2-category": "default" if each["row"] else "other",
        }
        for each in SEPARATING
    ]  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path / "data.json"


def test_recorded_cases_of_the_public_protocol(golden, tmp_path):
    recorded = json.loads((golden / "xlrs_scoring.json").read_text())
    lines = [
        line(
            number, sample["prediction"], sample["doc"]["answer"], sample["doc"]["category"],
            understood=sample["letters"],
        )
        for number, sample in enumerate(recorded["samples"])
    ]  # fmt: skip
    results = rescore(write(tmp_path, lines))
    found = results["protocols"]["published"]
    assert found["micro"] == pytest.approx(recorded["micro"], abs=1e-12)
    assert found["macro"] == pytest.approx(recorded["macro"], abs=1e-12)
    assert found["right"] == sum(sample["correct"] for sample in recorded["samples"])
    assert found["otherwise"] == 0
    assert results["rows"]["counted"] == sum(results["rows_per_subtask"].values()) == 400


def test_protocols_by_hand(tmp_path, data):
    results = rescore(write(tmp_path, SEPARATING), data=Data(get_benchmark("xlrs"), str(data)))
    # Right of 1 motion state of the category "other", of 3 "default", of 2 land uses, of 1 color;
    # judged otherwise than by the published protocol.
    expected = {
        "published": ((1, 1, 1, 0), 0),
        "lmms-eval": ((1, 2, 1, 0), 1),
        "vlmevalkit": ((1, 1, 1, 0), 0),
        "vlmevalkit-matching": ((1, 2, 0, 0), 2),
        "uhr-bat": ((1, 0, 2, 0), 2),
    }
    assert list(results["protocols"]) == list(expected)
    for name, ((other, default, land, color), otherwise) in expected.items():
        found, right = results["protocols"][name], other + default + land + color
        assert (found["right"], found["otherwise"]) == (right, otherwise), name
        assert found["micro"] == pytest.approx(right / 7), name
        assert found["macro"] == pytest.approx(((other + default) / 4 + land / 2 + color) / 13), (
            name
        )
        groups = other / 1 + default / 3 + land / 2 + color / 1
        assert found["macro_present"] == pytest.approx(groups / 4), name


def test_without_data_groups_are_subtasks_and_no_choices_are_known(tmp_path):
    results = rescore(write(tmp_path, SEPARATING))
    assert "vlmevalkit-matching" not in results["protocols"]
    assert results["groups"] == "subtask"
    vlmevalkit = results["protocols"]["vlmevalkit"]
    assert vlmevalkit["macro_present"] == pytest.approx((2 / 4 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize("on_bad_rows", ["count-wrong", "skip"])
def test_scores_are_those_of_the_evaluation(tmp_path, on_bad_rows):
    rows = [
        {
            "image": "a.png", "question": f"{number}?", "multi-choice options": TEXTS,
            "answer": "A", "category": category,
        }
        for number, category in enumerate([MOTION, COLOR, MOTION, COLOR, "Else/unknown", MOTION])
    ]  # fmt: skip
    rows[5]["image"] = "missing.png"
    replies = ["A", "(A)", "B", "A and C"]
    expected, _ = replied("xlrs", rows, replies, tmp_path, on_bad_rows=on_bad_rows)
    path = tmp_path / "o" / "predictions.jsonl"
    results = rescore(path, on_bad_rows)
    assert results["model"] == "parrot"
    assert results["rows"] == {
        "in_file": 6, "counted": 6 if on_bad_rows == "count-wrong" else 4, "bad": 2,
        "on_bad_rows": on_bad_rows,
    }  # fmt: skip
    for average in ("micro", "macro", "macro_present"):
        found = results["protocols"]["published"]
        assert found[average] == pytest.approx(expected[average])
        assert found["intervals"][average] == expected["intervals"][average]
    with pytest.raises(ValueError, match=r"row 4 has no reply: row \?: category must be one of"):
        rescore(path)


def test_the_command(run, tmp_path, data):
    path = write(tmp_path, SEPARATING)
    code, out, err = run("evaluate", "rescore", path)
    assert (code, err) == (0, "")
    table = [text.split() for text in out.splitlines()]
    assert table[1] == ["published", "42.9*", "7.7*", "33.3", "3", "0"]
    assert table[4] == ["vlmevalkit-matching", *"-----"]
    assert "3 of 13 subtasks have rows, and the macro counts the others 0" in out
    assert "MiMo-VL-7B-RL-2508 12.29: macro, groups with rows, by vlmevalkit (the model" in out

    report = tmp_path / "report.md"
    options = ["--data", data, "--json", "--out", report]
    code, out, err = run("evaluate", "rescore", path, *options)
    assert (code, err) == (0, "")
    results = json.loads(out)
    assert results == rescore(path, data=Data(get_benchmark("xlrs"), str(data)))
    text = report.read_text()
    assert "| vlmevalkit-matching | 42.9* | 5.8 | 41.7 | 3 | 2 |" in text
    assert "UHR-BAT | uhr-bat | micro, weighted by rows |" in text


MISSING = {key: value for key, value in line(0, "").items() if key != "reply"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(0, "A", subtask="Counting/Up")], "row 0: subtask must be one of the 13"),
        ([line(0, "A", subtask=None)], "row 0: subtask must be one of the 13"),
        ([MISSING], "a reply or a problem, and without unknown names: KeyError 'reply'"),
        ([line(0, None)], "row 0: reply must be a text, got None"),
        ([line(0, "A", answer="ship")], "answer must be letters from A to E, got 'ship'"),
        ([line(0, "A", answer="")], "answer must be letters from A to E, got ''"),
        ([line(0, "A", understood="ship")], "must be a list of letters, as of the benchmark xlrs"),
        ([line(0, "A", images=[["a"]])], "row 0: images must be names"),
        ([line(0, "A"), line(2, "A")], "row 2 stands where row 1 is expected"),
        ([line(0, "A"), line(0, "A")], "row 0 stands where row 1 is expected"),
        ([line(1, "A")], "row 1 stands where row 0 is expected"),
        ([], "must hold predictions, it is empty"),
        ([not_asked(0)], "row 0 has no reply: no image; --on-bad-rows"),
        (["A"], "its lines must be predictions"),
    ],
)
def test_what_is_no_whole_file_of_predictions_is_refused(run, tmp_path, lines, message):
    check_refusal(run("evaluate", "rescore", write(tmp_path, lines)), message)


def test_a_half_file_is_refused(run, tmp_path):
    path = write(tmp_path, SEPARATING)
    path.write_bytes(path.read_bytes()[:-20])
    check_refusal(run("evaluate", "rescore", path), "must be whole, its last line is cut")
    check_refusal(run("evaluate", "rescore", tmp_path), "it is a folder")
    check_refusal(run("evaluate", "rescore", tmp_path / "no.jsonl"), "no.jsonl")
    bad = write(tmp_path, [not_asked(0)])
    result = run("evaluate", "rescore", bad, "--on-bad-rows", "count-wrong")
    check_refusal(result, "must hold at least one reply, it holds none")
    check_refusal(run("evaluate", "rescore", bad, "--out", "r.txt"), "must end in .md")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"benchmark": "scenes-open"}, "must be of the benchmark xlrs, it is of scenes-open"),
        ({"rows": {"asked": 8}}, "must hold 8 rows as "),
        ({"rows": None}, "must hold results of an evaluation: "),
    ],
)
def test_results_beside_must_agree(run, tmp_path, results, message):
    path = write(tmp_path, SEPARATING)
    whole = {"benchmark": "xlrs", "rows": {"asked": 7}, "protocol": {"model": "m"}}
    (tmp_path / "results.json").write_text(json.dumps(whole))
    assert rescore(path)["model"] == "m"
    (tmp_path / "results.json").write_text(json.dumps({**whole, **results}))
    check_refusal(run("evaluate", "rescore", path), message)


def test_other_data_is_refused(run, tmp_path, data):
    path = write(tmp_path, [*SEPARATING[:6], line(6, "C", answer="B", subtask=COLOR)])
    result = run("evaluate", "rescore", path, "--data", data)
    check_refusal(result, "its row 6 has another index or answer than the prediction")
    path = write(tmp_path, [*SEPARATING, line(7, "A")])
    result = run("evaluate", "rescore", path, "--data", data)
    check_refusal(result, "must hold the 8 rows that were asked, it holds 7")
