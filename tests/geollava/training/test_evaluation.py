"""Rows that are never trained on: their loss and score, the best checkpoint, an early stop."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from geollava.training.folder import best_checkpoint, last_checkpoint
from geollava.training.samples import score_of
from tests.geollava.conftest import noise
from tests.geollava.training.test_run import history, trained


@pytest.fixture
def held_out(tmp_path):
    """Three rows beside the eight; their answers are in none of those -> the key of the file."""
    rows = []
    for index in range(3):
        noise(100, 90 + index, 50 + index).save(tmp_path / f"held-{index}.png")
        question, answer = f"<image>\nWhich {index}?", "xyz"[index]
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"h{index}", "image": [f"held-{index}.png"], "conversations": turns})
    (tmp_path / "held.json").write_text(json.dumps(rows))
    return {"files": ["held.json"], "asked": 2, "max_new_tokens": 2}


def logged(output, name):
    state = json.loads((last_checkpoint(output) / "trainer_state.json").read_text())
    return {log["step"]: log[name] for log in state["log_history"] if name in log}


def test_the_result_is_the_checkpoint_of_the_least_loss(write, run, tmp_path, held_out):
    frozen = {"vision_tower": "frozen", "affinity_head": "frozen", "projector": "frozen"}
    settings = {
        "parts": frozen | {"language_model": 0.03},  # so fast that it gets worse
        "assignment": "hard",
        "schedule": "constant_with_warmup",
        "save_every": 1,
        "max_steps": 5,
        "keep_checkpoints": 1,
        "data": {"files": ["data.json"], "encode_once": True},
    }
    code, _, err = run("train", write(**settings, evaluation=held_out))
    assert code == 0, err
    losses, scores = (logged(tmp_path / "run", name) for name in ("eval_loss", "eval_score"))
    assert list(losses) == list(scores) == [1, 2, 3, 4, 5]
    assert set(scores.values()) <= {0.0, 0.5, 1.0}
    best = min(losses, key=losses.get)
    assert best < 5
    assert best_checkpoint(tmp_path / "run").name == f"checkpoint-{best}"
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    kept = load_file(tmp_path / "run" / f"checkpoint-{best}" / "trained.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept.items())

    stopping = write(**settings, output="early", evaluation=held_out | {"patience": 1})
    assert run("train", stopping)[0] == 0
    stopped = logged(tmp_path / "early", "eval_loss")
    assert max(stopped) < 5
    assert min(stopped, key=stopped.get) == max(stopped) - 1


def test_a_row_that_is_trained_on_is_refused(write, run, held_out):
    code, _, err = run("train", write(evaluation=held_out | {"files": ["data.json"]}))
    assert (code, "evaluation: no row may be trained on, 8 are, such as the id 0" in err) == (
        2,
        True,
    )


def test_the_score_is_of_answers_alike():
    answers = [
        {"expected": "Two cars.", "answer": " two cars"},
        {"expected": "two cars", "answer": "two cars and more"},
    ]
    assert score_of(answers) == 0.5


def test_a_run_that_ended_goes_on_where_it_is_made_longer(write, run, tmp_path):
    constant = {"schedule": "constant_with_warmup", "warmup": 0.0}
    assert run("train", write(**constant, output="whole", max_steps=6))[0] == 0
    assert run("train", write(**constant, max_steps=2))[0] == 0
    short = load_file(tmp_path / "run" / "model" / "model.safetensors")
    code, _, err = run("train", write(**constant, max_steps=6), "--resume")
    assert code == 0, err
    assert history(tmp_path / "run") == history(tmp_path / "whole")  # to the last bit
    once, again = trained(tmp_path / "whole"), trained(tmp_path / "run")
    assert all(torch.equal(once[name], again[name]) for name in once)
    longer = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert any(not torch.equal(short[name], longer[name]) for name in short)
    code, _, err = run("train", write(**constant, max_steps=8, accumulate=2), "--resume")
    assert (code, "accumulate: changed since the run" in err) == (2, True)
