"""The recipe of the shipped model goes through, a few steps of each part."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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

    command = [sys.executable, RECIPE / "tower.py", "tower", "--steps", "3", "--batch-size", "2"]
    for minutes in ("0.001", "10"):  # stopped after a step, and gone on with
        done = subprocess.run(
            [*command, "--minutes", minutes], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("stopped at step 1" in done.stderr) == (minutes == "0.001")
    for minutes in (0, 10):
        step("words.py", "words", "--steps", 3, "--scenes", 1, "--minutes", minutes)
    step("bank.py", "tower", "bank", "--scenes", 3, "--first-seed", 1)
    few = ("--steps", 2, "--scenes", 1, "--join-steps", 2)
    step("images.py", "tower", "words", "bank", "model", *few)
    options = ("--layout", "varied", "--size", 672, "--count", 1, "--ground", "procedural")
    assert run("scenes", tmp_path / "672", *options)[0] == 0
    step("rows.py", ".", "--free", Path(__file__).with_name("free_questions.json"))
    assert len(json.loads((tmp_path / "free.json").read_text())) == 40
    for name in set(sys.modules) - before:
        if (RECIPE / f"{name}.py").is_file():
            del sys.modules[name]
    state = torch.load(tmp_path / "words" / "teaching.pt", weights_only=True)
    assert state["step"] == 3
    scored = ("evaluate", "scenes-words", "--data", "words.json", "--out", "scored")
    code, _, err = run(*scored, "--model", "model", "--limit", 2)
    assert code == 0, err
    image = next((tmp_path / "672/images").iterdir())
    asked = ("ask", image, "What is red?", "--json", "--max-new-tokens", 8)
    code, out, err = run(*asked, "--model", tmp_path / "model")
    assert code == 0, err
    assert json.loads(out)["tokens_after"] == 4 * 24
