"""Evaluations: the public scores, the same file after a kill, no row lost, an image read once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from geollava.answering import session
from geollava.answering.prefix import Prefix
from geollava.evaluate import scores
from geollava.evaluate.benchmark import get_benchmark
from geollava.evaluate.benchmarks import xlrs
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.models import geollava_model as own_model
from geollava.evaluate.models.answerer import Answerer, Reply, Seen
from geollava.evaluate.models.opening import open_model
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from geollava.imagery import as_scene
from geollava.model.default_model import DEMONSTRATION
from tests.geollava.conftest import noise
from tests.tokenprune.checkpoint import write_llava

XLRS = get_benchmark("xlrs")


class Parrot(Answerer):
    """Gives to each question the reply that it is told; 8 questions in a batch."""

    def __init__(self, replies):
        self.replies, self.asked, self.seen = replies, 0, 0

    def reduce(self, method, num_keep):
        raise AssertionError("not reduced here")

    def see(self, scenes):
        self.seen += 1
        return Seen([scene.size for scene in scenes], crops=1, tokens_before=576, tokens_after=24)

    def prepare(self, seen, prompt, max_new_tokens):
        return prompt

    def ask(self, seen, prepared, max_new_tokens):
        self.asked += len(prepared)
        return [Reply(self.replies(prompt), 0.5) for prompt in prepared]

    def protocol(self, *, blind):
        return {"model": "parrot", "method": None}


def some_letter(prompt):
    return "ABCD"[sum(prompt.encode()) % 4]


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


def lines_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def contents(folder):
    """Everything that a run leaves but what it took."""
    results = json.loads((folder / "results.json").read_text())
    results.pop("seconds")
    return (folder / "predictions.jsonl").read_bytes(), results, sorted(os.listdir(folder))


def test_recorded_scores_come_out_of_a_whole_run(golden, tmp_path):
    recorded = json.loads((golden / "xlrs_scoring.json").read_text())
    noise(40, 40).save(tmp_path / "a.png")
    rows = [
        {**sample["doc"], "image": ["a.png"], "question": f"{number} {sample['doc']['question']}"}
        for number, sample in enumerate(recorded["samples"])
    ]
    replies = [sample["prediction"] for sample in recorded["samples"]]
    parrot = Parrot(lambda prompt: replies[int(prompt.split()[0])])
    results = evaluate(
        Data(XLRS, str(write(tmp_path / "d.json", rows))), parrot, tmp_path / "out", Options()
    )
    assert results["micro"] == pytest.approx(recorded["micro"], abs=1e-12)
    assert results["macro"] == pytest.approx(recorded["macro"], abs=1e-12)
    assert results["per_subtask"] == pytest.approx(recorded["per_subtask"], abs=1e-12)
    assert parrot.seen == 1
    for sample, line in zip(recorded["samples"], lines_of(tmp_path / "out"), strict=True):
        assert line["understood"] == sample["letters"]
        assert line["credit"] == sample["correct"]
    assert "| Qwen3-VL-8B | 50.0 |" in (tmp_path / "out" / "results.md").read_text()


def test_scenes_are_asked_about_as_they_are_trained_on(questions):
    for row in json.loads(questions.read_text()):
        assert row["conversations"][0]["value"] == f"<image>\n{xlrs.build_prompt(row)}"


def test_command(run, questions, guessing_checkpoint, tmp_path):
    out = tmp_path / "out"
    options = ("--model", guessing_checkpoint, "--max-new-tokens", 1, "--batch-size", 3)
    code, printed, err = run("evaluate", "xlrs", "--data", questions, "--out", out, *options)
    assert (code, printed) == (0, ""), err
    assert "40 of 40 rows answered" in err
    assert DEMONSTRATION not in err
    rows, lines = json.loads(questions.read_text()), lines_of(out)
    results = json.loads((out / "results.json").read_text())
    expected = xlrs.score(rows, [line["reply"] for line in lines])
    assert expected == {name: pytest.approx(results[name]) for name in expected}
    assert 0 < results["micro"] < 1
    low, high = results["intervals"]["micro"]
    assert low < results["micro"] < high
    assert results["chance"]["macro_present"] == pytest.approx((7 * 0.25 + 0.5) / 8)
    protocol = results["protocol"]
    assert protocol["prompt"].count("<image>") == 1
    assert protocol["example"] == xlrs.build_prompt(rows[0])
    assert (protocol["tokens_per_crop"], protocol["max_new_tokens"]) == (24, 1)
    assert Image.open(out / "results.png").width > 500
    assert sorted(os.listdir(out)) == [
        "predictions.jsonl", "results.json", "results.md", "results.png", "settings.json",
    ]  # fmt: skip


def test_the_demonstration_model_says_so_once(run, questions, tmp_path):
    options = ("--max-new-tokens", 1, "--limit", 2, "--blind")
    code, _, err = run("evaluate", "xlrs", "--data", questions, "--out", tmp_path, *options)
    assert code == 0, err
    assert err.count(DEMONSTRATION) == 1


def test_replies_are_those_of_ask(questions, guessing_checkpoint, monkeypatch):
    reads, original = [], Prefix.read
    monkeypatch.setattr(Prefix, "read", lambda *a: reads.append(len(a[1])) or original(*a))
    answerer = open_model(str(guessing_checkpoint), None, None, "cpu", "float32")
    data = Data(XLRS, str(questions))
    examples = data.examples(blind=False, limit=4)
    prompts = [XLRS.build_prompt(example.row) for example in examples]
    with data.open(examples[0]) as scenes:
        seen = answerer.see(scenes)
        prepared = [answerer.prepare(seen, prompt, 3) for prompt in prompts]
        together = answerer.ask(seen, prepared, 3)
        for inputs, reply in zip(prepared, together, strict=True):
            (alone,) = answerer.ask(seen, [inputs], 3)
            assert alone.text == reply.text
            assert alone.confidence == pytest.approx(reply.confidence, abs=1e-3)
        assert len(reads) == 1  # what all questions share is read once
        assert reads[0] < min(map(len, prepared))
        asked = answerer.session.see(scenes[0])
        assert [asked.ask(prompt, max_new_tokens=3).text for prompt in prompts] == [
            reply.text for reply in together
        ]
    assert len({reply.text for reply in together}) > 1


def test_an_image_is_encoded_once(questions, guessing_checkpoint, tmp_path, monkeypatch):
    sizes = []
    original = session.encode_scene
    monkeypatch.setattr(
        session,
        "encode_scene",
        lambda m, p, scene, **more: sizes.append(scene.size) or original(m, p, scene, **more),
    )
    rows = json.loads(questions.read_text())
    rows = [{**row, "image": str(questions.parent / row["image"][0])} for row in rows[:24:8] * 2]
    data = Data(XLRS, str(write(tmp_path / "d.json", rows)))
    answerer = open_model(str(guessing_checkpoint), None, None, "cpu", "float32")
    evaluate(data, answerer, tmp_path / "out", Options(max_new_tokens=1))
    assert sizes == [(400 + 60 * seed, 300) for seed in range(3)]
    assert [line["row"] for line in lines_of(tmp_path / "out")] == list(range(6))


@pytest.mark.parametrize("torn", [b"", b'{"row": 39, "re'])
def test_the_same_file_after_a_kill(questions, tmp_path, torn):
    def run(out, parrot):
        return evaluate(Data(XLRS, str(questions)), parrot, out, Options(batch_size=3))

    run(tmp_path / "whole", Parrot(some_letter))
    killed, out = Parrot(some_letter), tmp_path / "killed"
    killed.replies = lambda prompt: some_letter(prompt) if killed.asked < 20 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        run(out, killed)
    assert not (out / "results.json").exists()
    with (out / "part-0.jsonl").open("ab") as file:
        file.write(torn)
    again = Parrot(some_letter)
    results = run(out, again)
    assert 40 - 20 <= again.asked < 40 - 10
    assert contents(out) == contents(tmp_path / "whole")
    assert results["seconds"]["rows"] == 40
    after = Parrot(some_letter)
    assert run(out, after)["seconds"] == results["seconds"]
    assert after.asked == after.seen == 0


def test_more_rows_go_on_other_settings_do_not(questions, tmp_path):
    data = Data(XLRS, str(questions))
    first, second = Parrot(some_letter), Parrot(some_letter)
    evaluate(data, first, tmp_path, Options(limit=16))
    results = evaluate(data, second, tmp_path, Options())
    assert (first.asked, second.asked) == (16, 24)
    assert results["rows"]["answered"] == results["seconds"]["rows"] == 40
    with pytest.raises(ValueError, match="holds results with max_new_tokens = 64, expected 3"):
        evaluate(data, second, tmp_path, Options(max_new_tokens=3))


def test_bad_rows_are_named_and_counted_as_asked(questions, tmp_path):
    rows = json.loads(questions.read_text())
    rows[3]["category"] = "Counting/Up"
    rows[4]["image"] = ["gone.png"]
    rows[5]["image"] = []
    rows[6]["multi-choice options"] = None
    (tmp_path / "cut.png").write_bytes((questions.parent / "1.png").read_bytes()[:5000])
    rows[7]["image"] = ["cut.png"]
    for row in rows:
        row["image"] = [str(questions.parent / n) if n != "cut.png" else n for n in row["image"]]
    data = Data(XLRS, str(write(tmp_path / "d.json", rows)))

    def run(name, **options):
        return evaluate(data, Parrot(some_letter), tmp_path / name, Options(**options))

    with pytest.raises(ValueError, match=r"row 3 \(index 3\): row 3: category .* 3 more bad rows"):
        run("refuse")
    assert not (tmp_path / "refuse").exists()

    wrong = run("wrong", on_bad_rows="count-wrong")
    skipped = run("skipped", on_bad_rows="skip")
    correct = sum(line.get("credit", 0) for line in lines_of(tmp_path / "wrong"))
    assert wrong["micro"] == pytest.approx(correct / 40)
    assert skipped["micro"] == pytest.approx(correct / 36)
    assert wrong["bad_rows"] == skipped["bad_rows"]
    assert [bad["row"] for bad in wrong["bad_rows"]] == [3, 4, 5, 6]
    assert [bad["subtask"] is None for bad in wrong["bad_rows"]] == [True, False, False, False]
    assert "| 4 | 4 | " in (tmp_path / "wrong" / "results.md").read_text()
    assert wrong["rows"] == {
        "in_data": 40, "of_benchmark": 40, "asked": 40, "answered": 36, "bad": 4,
        "on_bad_rows": "count-wrong",
    }  # fmt: skip
    assert run("blind", on_bad_rows="skip", blind=True)["rows"]["answered"] == 38


def test_pixels_that_cannot_be_read_are_a_bad_row(run, questions, guessing_checkpoint, tmp_path):
    rows = json.loads(questions.read_text())[6:10]
    for row in rows[:2]:
        row["image"] = ["cut.png"]
    (tmp_path / "cut.png").write_bytes((questions.parent / "1.png").read_bytes()[:5000])
    for row in rows[2:]:
        row["image"] = [str(questions.parent / "1.png")]
    command = [
        "evaluate", "xlrs", "--data", write(tmp_path / "d.json", rows), "--out", tmp_path / "out",
        "--model", guessing_checkpoint, "--max-new-tokens", 1,
    ]  # fmt: skip
    code, _, err = run(*command)
    assert code == 2
    assert "row 0 (index 6): " in err
    assert "cut.png" in err
    code, _, err = run(*command, "--on-bad-rows", "count-wrong")
    assert code == 0
    assert "2 of 4 rows answered" in err
    assert err.count("cut.png") == 2
    assert run(*command)[0] == 2  # what another run let pass is not hidden


def test_blind_sees_nothing(questions, guessing_checkpoint, tmp_path):
    rows = json.loads(questions.read_text())
    for row in rows:
        row["image"] = ["gone.png"]
    answerer = open_model(str(guessing_checkpoint), None, None, "cpu", "float32")
    replies = []
    for name, data in (("a", questions), ("b", write(tmp_path / "d.json", rows))):
        options = Options(blind=True, max_new_tokens=1, limit=10)
        results = evaluate(Data(XLRS, str(data)), answerer, tmp_path / name, options)
        replies.append([line["reply"] for line in lines_of(tmp_path / name)])
        assert results["tokens"]["tokens_after"] == 0
        assert "<image>" not in results["protocol"]["prompt"]
    assert replies[0] == replies[1]


@pytest.mark.parametrize("kind", ["saved", "parts", "parquet", "folder", "jsonl"])
def test_forms_of_data(questions, tmp_path, kind):
    rows = json.loads(questions.read_text())
    opened = [{**row, "image": [Image.open(questions.parent / row["image"][0])]} for row in rows]
    columns = ("index", "question", "multi-choice options", "answer", "category", "image")
    table = datasets.Dataset.from_list([{k: row[k] for k in columns} for row in opened])
    source, split = tmp_path / "data", None
    if kind == "saved":
        table.save_to_disk(source)
    elif kind == "parts":
        datasets.DatasetDict({"train": table, "other": table.select([0])}).save_to_disk(source)
        with pytest.raises(ValueError, match="has the parts other, train: choose one by --split"):
            Data(XLRS, str(source))
        split = "train"
    elif kind == "parquet":
        source.mkdir()
        table.to_parquet(source / "0.parquet")
    elif kind == "folder":
        (tmp_path / "train.json").write_text("[]")
        write(tmp_path / "test.json", rows)
        source = tmp_path
    else:
        source = tmp_path / "rows.jsonl"
        source.write_text("\n".join(json.dumps(row) for row in rows))
    data = Data(XLRS, str(source), split, questions.parent if kind in ("folder", "jsonl") else None)
    examples = data.examples(blind=False, limit=None)
    assert [example.problem for example in examples] == [None] * 40
    assert [example.index for example in examples] == [row["index"] for row in rows]
    assert len({example.images for example in examples}) == 5
    with data.open(examples[39]) as (scene,):
        assert np.array_equal(scene.read_rows(0, 300, 1), np.asarray(noise(640, 300, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "/nowhere"}, "the data /nowhere cannot be read: it does not exist"),
        ({"--data": "no such name"}, "cannot be read: it does not exist"),
        ({"--data": __file__}, "cannot be read: it holds neither Parquet"),
        ({"--model": "/nowhere"}, "/nowhere does not exist"),
        ({"--method": "best"}, "best"),
        ({"--method": "sparsevlm"}, "needs text"),
        ({"--num-keep": 577}, "between 1 and the 576 tokens"),
        ({"--num-keep": 577, "--method": "smaller_image"}, "between 1 and the 576 tokens"),
        ({"--on-bad-rows": "hide"}, "--on-bad-rows must be one of refuse, count-wrong, skip"),
        ({"--dtype": "int8"}, "--dtype must be one of"),
        ({"--out": __file__}, "test_evaluate.py"),
    ],
)
def test_bad_usage(run, questions, guessing_checkpoint, tmp_path, change, message):
    options = {"--data": questions, "--model": guessing_checkpoint, "--out": tmp_path / "o"}
    code, out, err = run(
        "evaluate", "xlrs", *(x for pair in (options | change).items() for x in pair)
    )
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1, err


def test_missing_extra_is_named(run, questions, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    err = run("evaluate", "xlrs", "--data", questions, "--out", tmp_path)[2]
    assert "pip install 'tokenprune-vlm[evaluate]'" in err


def test_intervals_are_by_scene():
    def graded(scenes, per_scene):
        return [
            scores.Graded("a", float(scene % 2), scene, 0.5)
            for scene in range(scenes)
            for _ in range(per_scene)
        ]

    def width(rows):
        low, high = scores.summarize(rows, ("a", "b"))["intervals"]["micro"]
        return high - low

    many, few = graded(400, 1), graded(20, 20)  # as many rows, right to one half
    assert width(many) == pytest.approx(4 * 0.5 / 400**0.5, rel=0.15)
    assert width(few) == pytest.approx(4 * 0.5 / 20**0.5, rel=0.15)
    summary = scores.summarize(few, ("a", "b"))
    assert (summary["micro"], summary["macro"], summary["macro_present"]) == (0.5, 0.25, 0.5)
    assert summary["rows_per_subtask"] == {"a": 400, "b": 0}
    assert summary["intervals"]["per_subtask"]["b"] is None


def test_difference_pairs_the_rows():
    right = [scores.Graded("a", float(i % 3 > 0), i, 0) for i in range(90)]
    better = [scores.Graded("a", float(i % 3 > 0 or i < 30), i, 0) for i in range(90)]
    gap, (low, high) = scores.difference(better, right, None, "micro")
    assert gap == pytest.approx(10 / 90)
    assert 0 < low < gap < high < 0.2
    assert scores.difference(right, right, None, "micro") == (0, [0, 0])
    with pytest.raises(ValueError, match="same rows"):
        scores.difference(right, right[1:], None, "micro")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A checkpoint of transformers' own LLaVA, tiny and random, with a chat template."""
    return write_llava(tmp_path_factory.mktemp("llava"))


def test_a_model_of_transformers(run, questions, llava, tmp_path):
    command = [
        "evaluate", "xlrs", "--data", questions, "--model", llava, "--max-new-tokens", 2,
        "--limit", 16, "--out",
    ]  # fmt: skip
    code, _, err = run(*command, tmp_path / "whole")
    assert code == 0, err
    assert "16 of 16 rows answered" in err
    assert run(*command, tmp_path / "all", "--method", "random", "--num-keep", 16)[0] == 0
    assert run(*command, tmp_path / "few", "--method", "random", "--num-keep", 1)[0] == 0
    whole, every, few = (lines_of(tmp_path / name) for name in ("whole", "all", "few"))
    assert whole == every  # 16 of 16 tokens
    assert [a["confidence"] for a in whole] != [b["confidence"] for b in few]
    err = run(*command, tmp_path / "x", "--method", "random")[2]
    assert "needs a method and a number of tokens" in err


@pytest.mark.slow
def test_two_processes_give_the_same_file(questions, guessing_checkpoint, tmp_path):
    def launch(*launcher, out):
        command = [
            "-m", *launcher, "geollava", "evaluate", "xlrs", "--data", questions, "--device",
            "cpu", "--model", guessing_checkpoint, "--max-new-tokens", 1, "--out", out,
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *map(str, command)], check=True, env=environment)

    launch(out=tmp_path / "one")
    launch(
        "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", out=tmp_path / "two"
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


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


def test_smaller_image_has_as_many_tokens_unreduced(guessing_checkpoint):
    answerer = open_model(str(guessing_checkpoint), None, None, "cpu", "float32")
    image = as_scene(noise(1300, 1000))
    own = answerer.see([image])
    answerer.reduce("smaller_image", 288)
    smaller = answerer.see([image])
    assert (own.crops, smaller.crops) == (12, 6)
    assert smaller.tokens_before == smaller.tokens_after == 6 * 576
    assert answerer.protocol(blind=False)["method"] == "smaller_image"
    answerer.reduce(None, None)
    assert answerer.see([image]).crops == 12
    assert answerer.protocol(blind=False)["method"] == "background_anchored"
