"""Eight rows, and a run over them."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from tests.geollava.conftest import noise

LEARNING = {
    "vision_tower": 1e-5,
    "projector": 1e-3,
    "affinity_head": 1e-3,
    "language_model": 1e-4,
}
LORA = {
    "parts": {"vision_tower": "frozen", "affinity_head": 1e-3, "language_model": "frozen"},
    "lora": {"rank": 4, "dropout": 0.1, "learning_rate": 0.01},
}


@pytest.fixture(autouse=True)
def one_thread():
    """The model is so small that a second thread only waits, on a busy machine for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def write(tmp_path, complete_checkpoint, monkeypatch):
    """Writes eight rows with images and a configuration -> its path."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = []
    for index in range(8):
        noise(100 + 30 * index, 90, index).save(tmp_path / f"{index}.png")
        question, answer = f"<image>\nHow many {index}?", "abc"[index % 3] * (index + 1)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append({"id": str(index), "image": [f"{index}.png"], "conversations": turns})
    rows[3] |= {"image": [], "conversations": [turns[1] | {"from": "human"}, turns[1]]}
    (tmp_path / "data.json").write_text(json.dumps(rows))

    def write(**changes):
        content = {
            "model": str(complete_checkpoint),
            "data": {"files": ["data.json"], "pack_visual_tokens": 150},
            "output": "run",
            "parts": LEARNING,
            "assignment": "straight_through",
            "max_steps": 6,
            "save_every": 2,
        }
        path = tmp_path / f"{len(list(tmp_path.glob('*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path

    return write
