"""A configuration that cannot be run is refused in one line, before a weight is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from geollava import GeoLlavaForConditionalGeneration
from geollava.training.config import TrainConfig, read_config
from tests.geollava.training.conftest import LEARNING, LORA

REFUSED = {
    "unknown key": ({"learning_rte": 1}, "learning_rte is no key of this file"),
    "unknown part": ({"parts": {"tower": 1}}, "parts.tower is no key of this file"),
    "missing": ({"model": None}, "model: input should be a valid string, got None"),
    "word": ({"epochs": "many"}, "epochs: input should be a valid number"),
    "negative rate": (
        {"parts": {"projector": -1}},
        "parts.projector: input should be greater than 0",
    ),
    "choice": ({"schedule": "zigzag"}, "schedule: input should be 'cosine', 'linear' or"),
    "nothing learns": (
        {"parts": dict.fromkeys(LEARNING, "frozen")},
        "parts: everything is frozen and there is no lora",
    ),
    "hard head": ({"assignment": "hard"}, "parts.affinity_head: a hard assignment"),
    "lora and full": ({"lora": {}}, "parts.language_model: must be frozen where lora"),
    "soft, published": (
        {"assignment": "soft", "export": "published"},
        "export: the published form",
    ),
    "4bit": (LORA | {"lora": {"quantize": "4bit"}}, "lora.quantize: 4bit needs a CUDA device"),
    "liger": ({"liger": True}, "liger: its kernels need a CUDA device"),
    "one process": ({"sharding": "fsdp2"}, "sharding: fsdp2 needs several processes"),
    "no such sharding": ({"sharding": "zero9.json"}, "sharding: must be none, fsdp2 or a file"),
    "encoded once, learning": (
        {"data": {"files": ["data.json"], "encode_once": True}},
        "data.encode_once: needs vision_tower and affinity_head frozen",
    ),
    "no model": ({"model": "/nowhere"}, "/nowhere does not exist"),
    "no data": ({"data": {"files": ["lost.json"]}}, "lost.json must be a readable JSON file"),
    "too many kept": ({"num_keep": 1000}, "num_keep must be between 1 and"),
}


@pytest.fixture
def no_weights(monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("weights were loaded before the configuration was refused")

    monkeypatch.setattr(GeoLlavaForConditionalGeneration, "from_pretrained", refuse)


def check_refusal(result, message):
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert message in err
    assert err.count("\n") == 1, err


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(write, run, no_weights, case, tmp_path):
    changes, message = REFUSED[case]
    check_refusal(run("train", write(**changes)), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [a", "line 1, column 10"),
        ("model: a\nmodel: b\n", "line 2, column 1: the key 'model' stands twice"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("- a", "must hold keys and values, got list"),
        ("", "must hold keys and values, got NoneType"),
        ("? [a]\n: b", "unhashable"),
    ],
)
def test_malformed_files(run, tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    check_refusal(run("train", path), message)


def test_corrupt_data_is_refused_or_left_out(write, run, tmp_path):
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:-3000])
    check_refusal(run("train", write()), "row 5 (id 5)")
    files = {"files": ["data.json"], "on_bad_rows": "skip"}
    code, _, err = run("train", write(data=files, max_steps=1))
    assert code == 0
    assert "1 of 8 rows are bad and left out" in err


def test_examples_can_be_read():
    examples = sorted((Path(__file__).parents[3] / "examples" / "train").glob("*.yaml"))
    assert len(examples) >= 3
    for path in examples:
        config = read_config(path)
        assert isinstance(config, TrainConfig)
        assert isinstance(config.sharding, str) or config.sharding.is_file()
