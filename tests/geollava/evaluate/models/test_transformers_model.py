"""A model of transformers answers a benchmark, reduced or not."""

from __future__ import annotations

import shutil

import pytest

from tests.geollava.evaluate.parrot import lines_of
from tests.tokenprune.checkpoint import write_llava


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


def test_an_adapter_beside_the_weights_is_refused(run, questions, llava, tmp_path):
    folder = shutil.copytree(llava, tmp_path / "llava")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    code, _, err = run(
        "evaluate", "xlrs", "--data", questions, "--model", folder, "--out", tmp_path / "out"
    )
    assert code == 2
    assert err.endswith("must hold whole weights, got an adapter (adapter_config.json)\n")
