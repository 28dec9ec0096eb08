"""The recipe of the shipped model goes through, a few steps of each part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

RECIPE = Path(__file__).parents[3] / "examples" / "small_model"


@pytest.mark.slow
def test_from_nothing_to_a_model(run, tmp_path):
    def step(script, *arguments):
        command = [sys.executable, str(RECIPE / script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]

    scenes = ("--size", 672, "--scale", 1.3, "--part", "train", "--no-choices")
    assert run("scenes", tmp_path / "scenes/s672", "--count", 4, *scenes)[0] == 0
    step("tower.py", "tower", "--steps", 20, "--batch-size", 2)
    step("words.py", "words", "--steps", 2, "--tokens", 200)
    step("join.py", "tower", "words", "scenes/s672", "start", "--steps", 2)
    step("practice.py", "start", "words", "scenes/s672", "practiced", "--steps", 2, "--rows", 1)
    config = yaml.safe_load((RECIPE / "train.yaml").read_text())
    config["data"]["files"] = config["data"]["files"][:1]
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config | {"max_steps": 2}))
    assert run("train", tmp_path / "train.yaml")[0] == 0
    image = next((tmp_path / "scenes/s672/images").iterdir())
    asked = ("ask", image, "What is red?", "--json", "--max-new-tokens", 8)
    code, out, err = run(*asked, "--model", tmp_path / "trained/model")
    assert code == 0, err
    assert json.loads(out)["tokens_after"] == 4 * 24
