"""Evaluations: the public scores, the same file after a kill, no row lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from geollava.evaluate.benchmarks import xlrs
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.models.opening import open_model
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from geollava.model.default_model import DEMONSTRATION
from tests.geollava.conftest import noise
from tests.geollava.evaluate.parrot import XLRS, Parrot, contents, lines_of, some_letter, write


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "/nowhere"}, "the data /nowhere cannot be read: it does not exist"),
        ({"--data": "no such name"}, "cannot be read: it does not exist"),
        ({"--data": __file__}, "cannot be read: it holds neither Parquet"),
        ({"--model": "/nowhere"}, "/nowhere does not exist"),
        ({"--method": "best"}, "best"),
        ({"--method": "sparsevlm"}, "sparsevlm needs a number of tokens to keep per crop"),
        ({"--num-keep": 577}, "between 1 and the 576 tokens"),
        ({"--num-keep": 577, "--method": "smaller_image"}, "between 1 and the 576 tokens"),
        ({"--on-bad-rows": "hide"}, "'hide' is not one of 'refuse', 'count-wrong', 'skip'"),
        ({"--dtype": "int8"}, "'int8' is not one of"),
        ({"--out": __file__}, "test_evaluation.py"),
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


@pytest.mark.slow
def test_two_processes_give_the_same_file(run, questions, guessing_checkpoint, tmp_path):
    command = [
        "evaluate", "xlrs", "--data", questions, "--device", "cpu", "--model", guessing_checkpoint,
        "--max-new-tokens", 1,
    ]  # fmt: skip
    code, _, err = run(*command, "--out", tmp_path / "one")
    assert code == 0, err
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m",
        "geollava", *command, "--out", tmp_path / "two",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, launcher)], check=True, env=environment)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
