"""Benchmarks are found by folder and by entry point; bad rows say what is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from geollava.evaluate import benchmarks
from geollava.evaluate.benchmark import get_benchmark, list_benchmarks

MINE = """
from geollava.evaluate.benchmark import Benchmark

BENCHMARK = Benchmark(
    name="harbors-2", title="Harbors", build_prompt=str, subtask_of=str, read_reply=str,
    grade=float, chance=float, max_new_tokens=1,
)
NEITHER = 7
"""


@pytest.mark.parametrize("name", list_benchmarks())
def test_every_benchmark_is_a_file_and_a_command(name):
    benchmark = get_benchmark(name)
    assert benchmark.name == name
    assert benchmark.problem_of({"index": 3}) is not None


@pytest.mark.parametrize("name", ["mme-realworld-rs", "scenes-open", "xlrs"])
@pytest.mark.parametrize("options", [[], "(A) 1", ["(A) 1", 2]])
def test_choices_are_texts_and_at_least_one(name, options):
    row = {
        "index": 3, "question": "How many?", "answer": "A", "category": "Counting/Overall counting",
        "multi-choice options": options,
    }  # fmt: skip
    problem = get_benchmark(name).problem_of(row)
    assert problem is not None
    assert problem.startswith("row 3: 'multi-choice options' must be a list of one or more texts")


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match=r"must be one of lrs-vqa, .*, xlrs-grounding, got 'no'"):
        get_benchmark("no")


def test_names_are_found_without_loading_anything():
    script = (
        "import sys; from geollava.evaluate.benchmark import list_benchmarks\n"
        "assert 'xlrs' in list_benchmarks()\n"
        "assert not [m for m in sys.modules if m.startswith('geollava.evaluate.benchmarks.')]\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_in_the_folder_is_a_benchmark(tmp_path, monkeypatch):
    (tmp_path / "harbors_2.py").write_text(MINE)
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{benchmarks.__name__}.harbors_2", raising=False)
    assert "harbors-2" in list_benchmarks()
    assert get_benchmark("harbors-2").title == "Harbors"


def test_another_package_adds_a_benchmark(tmp_path, monkeypatch):
    (tmp_path / "harbors_of_others.py").write_text(MINE)
    info = tmp_path / "others-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[geollava.benchmarks]\n"
        "harbors-2 = harbors_of_others:BENCHMARK\nneither = harbors_of_others:NEITHER\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert {"harbors-2", "neither", "xlrs"} <= set(list_benchmarks())
    assert get_benchmark("harbors-2").title == "Harbors"
    with pytest.raises(TypeError, match="harbors_of_others:NEITHER must hold a Benchmark called"):
        get_benchmark("neither")


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
