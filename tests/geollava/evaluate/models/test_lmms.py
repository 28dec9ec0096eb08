"""The plug-in for lmms-eval: the same scores as our own evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from geollava.evaluate import lmms_tasks
from geollava.evaluate.benchmark import get_benchmark
from geollava.evaluate.benchmarks import xlrs
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.models import lmms_plugin
from geollava.evaluate.models.lmms_plugin import answer_in_order, request_of
from geollava.evaluate.models.opening import open_model
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from tests.geollava.conftest import noise
from tests.geollava.evaluate.lmms import FOUND, ROOT, moved_tasks, needs_lmms_eval, run_lmms

XLRS = get_benchmark("xlrs")
GREEDY = {"max_new_tokens": 1, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}


@pytest.fixture
def saved(questions, tmp_path):
    """The questions as XLRS-Bench-lite comes: a `train` split of embedded images."""
    rows = json.loads(questions.read_text())
    for row in rows:
        row["image"] = [Image.open(questions.parent / row["image"][0])]
        del row["conversations"], row["id"]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "xlrs" / "data" / "train.parquet")
    return tmp_path / "xlrs"


@pytest.fixture
def captions(questions, tmp_path):
    """Three questions to each of two images, whose right answers have some of the letters."""
    rows = [
        {
            "image": Image.open(questions.parent / f"{number // 3}.png"),
            "question": f"Describe part {number}.",
            "answer": ["A or B" if number % 2 else "C or D"],
        }
        for number in range(6)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "captions" / "data" / "train.parquet")
    return tmp_path / "captions"


def test_requests_in_a_row_see_their_image_once(questions, guessing_checkpoint, tmp_path):
    rows = json.loads(questions.read_text())[:16]
    answerer = open_model(str(guessing_checkpoint), None, None, "cpu", "float32")
    options = Options(batch_size=4, max_new_tokens=1, limit=16)
    expected = evaluate(Data(XLRS, str(questions)), answerer, tmp_path, options)
    seen, sizes = answerer.see, []
    answerer.see = lambda scenes: sizes.append([scene.size for scene in scenes]) or seen(scenes)
    requests = (
        request_of(xlrs.build_prompt(row), [Image.open(questions.parent / row["image"][0])], GREEDY)
        for row in rows
    )
    replies = list(answer_in_order(answerer, requests, 4))
    assert xlrs.score(rows, replies)["per_subtask"] == expected["per_subtask"]
    assert sizes == [[(400 + 60 * seed, 300)] for seed in range(2)]


def test_batches():
    a, b = noise(30, 30, 0), noise(30, 30, 1)
    made = [request_of(str(i), [image], GREEDY) for i, image in enumerate([a, a, a, b, a, a])]
    made.append(request_of("6", [a], {**GREEDY, "max_new_tokens": 2}))
    made.append(request_of("7", [], {}))
    found = [[int(r.prompt) for r in batch] for _, batch in lmms_plugin.batches(made, 2)]
    assert found == [[0, 1], [2], [3], [4, 5], [6], [7]]
    assert made[-1].max_new_tokens == 128
    with pytest.raises(NotImplementedError, match=r"greedily, a task with temperature = 0\.7"):
        request_of("?", [], {"temperature": 0.7})


def test_entry_point_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    _, _, section = text.partition('[project.entry-points."lmms_eval.models"]\n')
    assert section.splitlines()[0] == 'geollava = "geollava.evaluate.models.lmms_plugin:manifest"'
    assert callable(lmms_plugin.manifest)


@pytest.mark.slow
@needs_lmms_eval
def test_lmms_eval_gives_the_same_scores(saved, captions, guessing_checkpoint, tmp_path):
    sources = (Path(FOUND.origin).parent / "tasks" / "xlrs", *map(Path, lmms_tasks.__path__))
    names = {
        "initiacms/XLRS-Bench-lite": saved,
        "task: xlrs-lite": "task: xlrs-here",
        "initiacms/XLRS-Bench_caption_en": captions,
    }
    results, samples = run_lmms(
        tmp_path,
        "geollava = geollava.evaluate.models.lmms_plugin:manifest",
        f"pretrained={guessing_checkpoint},dtype=float32,attention=eager",
        moved_tasks(sources, names, tmp_path / "tasks"),
        ["xlrs-here", "xlrs_caption_en"],
        *("--batch_size", 8, "--gen_kwargs", "max_new_tokens=1"),
    )
    answerer = open_model(str(guessing_checkpoint), None, None, "cpu", "float32", "eager")
    options = Options(max_new_tokens=1)
    ours = evaluate(Data(XLRS, str(saved)), answerer, tmp_path / "o", options)
    assert 0 < ours["macro"] < ours["micro"] < 1
    theirs = results["xlrs-here"]
    assert theirs["xlrs_micro_score,none"] == pytest.approx(ours["micro"])
    assert theirs["xlrs_macro_score,none"] == pytest.approx(ours["macro"])
    assert [sample["filtered_resps"] for sample in samples["xlrs-here"]] == replies(tmp_path / "o")

    data = Data(get_benchmark("xlrs-caption"), str(captions))
    ours = evaluate(data, answerer, tmp_path / "c", options)
    assert 0 < ours["micro"] < 1
    assert results["xlrs_caption_en"]["rouge_l,none"] == pytest.approx(ours["micro"])
    said = [sample["filtered_resps"] for sample in samples["xlrs_caption_en"]]
    assert said == replies(tmp_path / "c")


def replies(folder):
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["reply"] for line in lines]
