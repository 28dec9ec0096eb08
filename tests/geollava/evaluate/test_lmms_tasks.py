"""The tasks for lmms-eval: what their files name, and the scores of our own evaluation."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import datasets
import pytest

from geollava.evaluate import lmms_tasks
from geollava.evaluate.benchmark import get_benchmark
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.lmms_tasks import captioning, grounding
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from tests.geollava.conftest import noise
from tests.geollava.evaluate.lmms import moved_tasks, needs_lmms_eval, run_lmms
from tests.geollava.evaluate.parrot import Parrot

(FOLDER,) = map(Path, lmms_tasks.__path__)
HUB = "initiacms/XLRS-Bench"
CAPTIONS = {
    "en": [
        ("Describe.", ["A wide harbor with many ships.", ""], "A harbor with ships."),
        ("Describe it.", ["Fields and a road.", "A road between fields."], "A road and fields."),
        ("What is it?", ["A city."], "Water\n\nand nothing else."),
    ],
    "zh": [
        ("描述图像。", ["港口里有许多白色的船。"], "港口里有白色的船。"),
        ("请描述。", ["农田之间有一条道路。"], "一条道路，两边是农田。"),  # noqa: RUF001
    ],
}
BOXES = {
    "en": [
        ("Find the lake.", [0.1, 0.1, 0.3, 0.3], "[0.1, 0.1, 0.3, 0.25]"),  # IoU 0.75
        ("Find the ship.", [0.1, 0.1, 0.3, 0.3], "[0.1, 0.1, 0.3, 0.22]"),  # IoU 0.6
        ("Find the car.", [0.00001, 0.0, 0.5, 0.5], "I see no car."),
    ],
    "zh": [
        ("湖在哪里？", [0.1, 0.1, 0.3, 0.3], "（0.1，0.1），（0.3，0.3）"),  # noqa: RUF001
        ("船在哪里？", [0.1, 0.1, 0.3, 0.3], "左上角"),  # noqa: RUF001
    ],
}
TASKS = {
    **{f"xlrs_caption_{lang}": ("xlrs-caption", rows) for lang, rows in CAPTIONS.items()},
    **{f"xlrs_visual_grounding_{lang}": ("xlrs-grounding", rows) for lang, rows in BOXES.items()},
}
METRICS = {
    "xlrs-caption": {
        "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4",
        "chrf": "chrF",
    },
    "xlrs-grounding": {"accuracy_iou_70": "accuracy at IoU 0.7", "mean_iou": "mean IoU"},
}  # fmt: skip
MAIN = {"xlrs-caption": "rouge_l", "xlrs-grounding": "accuracy_iou_50"}


def save(folder, name, rows):
    """Rows as the hub's files are said to hold them, in the split that a task takes."""
    answer, split = ("answer", "train") if "caption" in name else ("bbox", "test")
    picture = folder / "picture.png"
    noise(40, 40).convert("L").save(picture)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question_id": datasets.Value("string"),
            "question": datasets.Value("string"),
            answer: datasets.List(datasets.Value("string" if answer == "answer" else "float64")),
        }
    )
    table = [
        {"image": str(picture), "question_id": f"{name}/{n}", "question": asked, answer: right}
        for n, (asked, right, _) in enumerate(rows)
    ]
    data = datasets.Dataset.from_list(table, features=features)
    data.to_parquet(folder / name / "data" / f"{split}.parquet")
    return folder / name


def expected_scores(folder, name, benchmark, rows):
    replies = {asked: reply for asked, _, reply in rows}
    data = Data(get_benchmark(benchmark), str(folder))
    results = evaluate(data, Parrot(replies.__getitem__), folder / "o", Options())
    others = {ours: results["other_scores"][its] for ours, its in METRICS[benchmark].items()}
    return {MAIN[benchmark]: results["micro"], **others}


@pytest.mark.slow
@needs_lmms_eval
def test_lmms_eval_gives_the_same_scores(tmp_path):
    saved = {name: save(tmp_path, name, rows) for name, (_, rows) in TASKS.items()}
    replies = {asked: reply for _, rows in TASKS.values() for asked, _, reply in rows}
    (tmp_path / "replies.json").write_text(json.dumps(replies))
    names = {
        f"dataset_path: {HUB}_{name.removeprefix('xlrs_')}\n": f"dataset_path: {path}\n"
        for name, path in saved.items()
    }
    results, samples = run_lmms(
        tmp_path,
        "parrot = tests.geollava.evaluate.lmms_parrot:manifest",
        f"replies={tmp_path / 'replies.json'}",
        moved_tasks([FOLDER], names, tmp_path / "tasks"),
        list(TASKS),
    )
    for name, (benchmark, rows) in TASKS.items():
        expected = expected_scores(saved[name], name, benchmark, rows)
        found = {metric: results[name][f"{metric},none"] for metric in expected}
        assert found == pytest.approx(expected), name
        assert 0 < expected[MAIN[benchmark]] < 1, name
        replies = [sample["filtered_resps"] for sample in samples[name]]
        assert replies == [reply for _, _, reply in rows]


@pytest.mark.parametrize("name", TASKS)
def test_functions_give_the_scores_of_our_evaluation(name, tmp_path):
    benchmark, rows = TASKS[name]
    functions = captioning if benchmark == "xlrs-caption" else grounding
    folder = save(tmp_path, name, rows)
    answer = "answer" if benchmark == "xlrs-caption" else "bbox"
    documents = [{"question": asked, answer: right} for asked, right, _ in rows]
    assert [functions.prompt(document) for document in documents] == [row[0] for row in rows]
    outcomes = [
        functions.outcome(document, [reply])
        for document, (_, _, reply) in zip(documents, rows, strict=True)
    ]
    found = {
        metric: getattr(functions, metric)([outcome[metric] for outcome in outcomes])
        for metric in functions.TASK.metrics
    }
    assert found == pytest.approx(expected_scores(folder, name, benchmark, rows))


@pytest.mark.parametrize("name", TASKS)
def test_files_name_what_there_is(name):
    benchmark, _ = TASKS[name]
    text = (FOLDER / f"{name}.yaml").read_text()
    assert f"task: {name}\ndataset_path: {HUB}_{name.removeprefix('xlrs_')}\n" in text
    (shared,) = re.findall("include: (.+)", text)
    shared = (FOLDER / shared).read_text()
    functions = re.findall(r"!function (\S+)\.(\w+)", shared)
    assert all(callable(getattr(import_module(module), name)) for module, name in functions)
    task = import_module(functions[0][0]).TASK
    assert task.benchmark is get_benchmark(benchmark)
    assert re.findall("- metric: (.+)", shared) == list(task.metrics)
    assert f"max_new_tokens: {task.benchmark.max_new_tokens}\n" in shared


def test_a_row_that_cannot_be_graded_is_refused_before_it_is_asked():
    with pytest.raises(ValueError, match=r"row g/1: 'answer' must be a box .* rows need"):
        grounding.prompt({"question_id": "g/1", "question": "Where?", "bbox": [1, 2, 3]})
    with pytest.raises(ValueError, match="row 7: row 7 must have 'answer'"):
        captioning.prompt({"index": 7, "question": "?"})


def test_images_and_target():
    picture = noise(9, 9).convert("L")
    for image in (picture, [picture]):
        (found,) = captioning.images({"image": image})
        assert (found.mode, found.size) == ("RGB", (9, 9))
    assert grounding.target({"image": picture, "bbox": [0, 0, 1, 1]}) == "[0, 0, 1, 1]"
