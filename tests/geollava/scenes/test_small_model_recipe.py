"""The recipe of the shipped model goes through, a few steps of each part."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

RECIPE = Path(__file__).parents[3] / "examples" / "small_model"


@pytest.mark.slow
def test_from_nothing_to_a_model(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(RECIPE)
    before = set(sys.modules)

    def step(script, *arguments):
        """In this process: the script's own module, which has its folder on the path."""
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        importlib.import_module(script.removesuffix(".py")).main()

    scenes = ("--size", 672, "--scale", 1.3, "--part", "train", "--no-choices")
    assert run("scenes", tmp_path / "scenes/s672", "--count", 4, *scenes)[0] == 0
    command = [sys.executable, RECIPE / "tower.py", "tower", "--steps", "20", "--batch-size", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # it draws in more
    assert done.returncode == 0, done.stderr[-3000:]
    step("words.py", "words", "--steps", 2, "--tokens", 200)
    step("join.py", "tower", "words", "scenes/s672", "start", "--steps", 2)
    step("practice.py", "start", "words", "scenes/s672", "practiced", "--steps", 2, "--rows", 1)
    for name in set(sys.modules) - before:
        if (RECIPE / f"{name}.py").is_file():
            del sys.modules[name]
    config = yaml.safe_load((RECIPE / "train.yaml").read_text())
    config["data"]["files"] = config["data"]["files"][:1]
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config | {"max_steps": 2}))
    assert run("train", tmp_path / "train.yaml")[0] == 0
    image = next((tmp_path / "scenes/s672/images").iterdir())
    asked = ("ask", image, "What is red?", "--json", "--max-new-tokens", 8)
    code, out, err = run(*asked, "--model", tmp_path / "trained/model")
    assert code == 0, err
    assert json.loads(out)["tokens_after"] == 4 * 24
