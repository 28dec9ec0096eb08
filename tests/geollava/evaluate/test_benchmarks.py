"""The other benchmarks in the frame: formats, prompts and scores of each."""

from __future__ import annotations

import base64
import json
import sys

import datasets
import pytest
from PIL import Image

from geollava.evaluate.benchmark import NAMES, get_benchmark
from geollava.evaluate.benchmarks import lrs_vqa, mme_realworld_rs, xlrs_caption, xlrs_grounding
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from geollava.scenes import plan, question_rows
from tests.geollava.conftest import noise
from tests.geollava.evaluate.test_evaluate import Parrot, lines_of

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


def run(name, rows, replies, folder, **options):
    """Replies in the order of the rows -> (results, lines of predictions)."""
    noise(40, 40).save(folder / "a.png")
    (folder / "d.json").write_text(json.dumps(rows))
    benchmark = get_benchmark(name)
    data = Data(benchmark, str(folder / "d.json"))
    left = iter(replies)
    results = evaluate(data, Parrot(lambda prompt: next(left)), folder / "o", Options(**options))
    return results, lines_of(folder / "o")


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_is_a_file_and_a_command(name):
    benchmark = get_benchmark(name)
    assert benchmark.name == name
    assert benchmark.problem_of({"index": 3}) is not None
    with pytest.raises(ValueError, match=r"must be one of xlrs, .* got 'no'"):
        get_benchmark("no")


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
    results, lines = run("mme-realworld-rs", rows, ["B", "A", "B"], tmp_path)
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
    results, lines = run("lrs-vqa", rows, ["plane", "Plane", "two", "Urban"], tmp_path)
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


@pytest.mark.parametrize(
    ("reply", "overlap"),
    [
        ("[0, 0, 10, 10]", 1.0),
        ("It is at (10, 10), (0, 0).", 1.0),
        ("[0, 0, 10, 6]", 0.6),
        ("[5, 0, 15, 10] or [0, 0, 10, 10]", 1 / 3),
        ("[20, 20, 30, 30]", 0.0),
        ("upper left", 0.0),
    ],
)
def test_overlap(reply, overlap):
    for answer in ([0, 0, 10, 10], "[[0, 0, 10, 10]]"):
        assert xlrs_grounding.overlap({"answer": answer}, reply) == pytest.approx(overlap)


def test_grounding(tmp_path):
    rows = [{"image": ["a.png"], "question": f"Find {i}", "answer": [0, 0, 10, 10]} for i in "abc"]
    rows.append({**rows[0], "answer": "in the middle"})
    replies = ["[0, 0, 10, 6]", "[0, 0, 10, 8]", "no"]
    with pytest.raises(ValueError, match=r"row 3 \(index 3\): 'answer' must be a box"):
        run("xlrs-grounding", rows, replies, tmp_path)
    results, lines = run("xlrs-grounding", rows, replies, tmp_path, on_bad_rows="skip")
    assert results["micro"] == pytest.approx(2 / 3)
    assert results["other_scores"] == {
        "accuracy at IoU 0.5": pytest.approx(2 / 3),
        "accuracy at IoU 0.7": pytest.approx(1 / 3),
        "mean IoU": pytest.approx(1.4 / 3),
    }
    assert lines[0]["understood"] == [0, 0, 10, 6]


def test_captions(tmp_path):
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    reference = "A wide harbor with many white ships and a long pier in the middle of the image."
    rows = [{"image": "a.png", "caption": reference}, {"image": "a.png", "caption": reference}]
    results, lines = run("xlrs-caption", rows, [reference, "A long pier"], tmp_path)
    assert lines[0]["credit"] == 1
    assert lines[1]["credit"] == pytest.approx(2 * (1 * 3 / 17) / (1 + 3 / 17))  # 3 of 17 words
    assert results["micro"] == pytest.approx((1 + lines[1]["credit"]) / 2)
    other = results["other_scores"]
    assert list(other) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "chrF"]
    assert 0 < other["BLEU-4"] < other["BLEU-1"] < 1
    assert results["protocol"]["example"] == xlrs_caption.REQUEST


def test_scenes_asked_without_choices():
    benchmark = get_benchmark("scenes-open")
    for row in question_rows(plan(5, 1100), "scene.jpg"):
        choices = [choice[4:] for choice in row["multi-choice options"]]
        right = choices["ABCD".index(row["answer"])]
        assert benchmark.build_prompt(row) == row["question"]
        assert [benchmark.grade(row, f" {choice}.") for choice in choices] == [
            choice == right for choice in choices
        ]
        assert not benchmark.grade(row, row["answer"])
        assert benchmark.chance(row) == 1 / len(choices)
        assert benchmark.problem_of(row) is None
        assert "none of its choices is E" in benchmark.problem_of(row | {"answer": "E"})
        assert "is no task of the scenes" in benchmark.problem_of(row | {"category": "Cooking"})


def test_scenes_have_no_captions(run, questions, tmp_path):
    """`test.json` of `geollava scenes` has an answer, which is a letter."""
    options = ["--data", questions, "--out", tmp_path / "out"]
    code, out, err = run("evaluate", "xlrs-caption", *options)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert "'answer' must be a description, got " in lines[0]
    assert "beside 'multi-choice options'; rows need a caption" in lines[0]
    assert "geollava scenes writes none" in lines[0]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["ablation", "xlrs"], "as those in boxes.json of geollava scenes do"),
        (["xlrs-grounding"], "as in grounding.json of geollava scenes"),
        (["mme-realworld-rs"], "as in the JSON of MME-RealWorld"),
        (["xlrs-caption"], "rows need a caption"),
    ],
)
def test_rows_that_lack_what_is_needed_say_how_to_make_them(run, command, message, tmp_path):
    Image.new("RGB", (90, 90)).save(tmp_path / "a.png")
    row = {"index": 0, "image": ["a.png"], "question": "How many?", "category": "Counting"}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    options = ["--data", tmp_path / "rows.json", "--out", tmp_path / "out"]
    code, out, err = run("evaluate", *command, *options)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert message in lines[0]
