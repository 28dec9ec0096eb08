"""Nothing phones home, and HF_HUB_OFFLINE is honored: in processes that can reach no other machine.

`no_network/sitecustomize.py` sees what Python opens, also in child processes; not what a native
library would open by itself.
"""

from __future__ import annotations

import json

import pytest
import yaml

from geollava.model.default_model import default_checkpoint
from tests.geollava.conftest import noise
from tests.tokenprune.checkpoint import write_llava
from tests.tools.processes import COMMANDS, python


@pytest.fixture
def alone(tmp_path):
    """Runs Python without other machines -> (the process, what it tried to reach)."""
    attempts = tmp_path / "attempts"

    def alone(*arguments, given="", **environment):
        attempts.write_text("")
        environment |= {"ATTEMPTS": str(attempts), "HF_HOME": str(tmp_path / "cache")}
        done = python("no_network", *arguments, folder=tmp_path, given=given, **environment)
        return done, attempts.read_text().splitlines()

    return alone


def test_attempts_are_seen(alone):
    script = "import socket; socket.create_connection(('example.org', 443))"
    done, attempts = alone("-c", script)
    assert done.returncode
    assert attempts == ["socket.getaddrinfo example.org by -c"]


@pytest.mark.slow
def test_commands_on_local_files_reach_nobody(alone, tmp_path):
    """Whether or not downloads are allowed: here they are."""
    pytest.importorskip("pyarrow")
    pytest.importorskip("yaml")
    (tmp_path / "images").mkdir()
    noise(60, 40).save(tmp_path / "images" / "a.png")
    (tmp_path / "q.txt").write_text("What?\n")
    data = {"files": ["drawn/train.json"]}
    training = {"model": str(default_checkpoint()), "output": "run", "data": data, "max_steps": 1}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(training))
    drawn = ["scenes", "drawn", "--count", "2", "--size", "512", "--ground", "procedural"]
    commands = [
        ["ask", "images/a.png", "What?"],
        ["batch", "images", "--questions", "q.txt", "--out", "answers.parquet"],
        drawn,
        ["evaluate", "scenes-open", "--data", "drawn/test.json", "--out", "out", "--limit", "1"],
        ["train", "run.yaml"],
    ]
    done, attempts = alone("-c", COMMANDS, given=json.dumps(commands), HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert attempts == []


APPLIED = """
import sys, torch, tokenprune
from transformers import AutoModelForImageTextToText
from tokenprune.cli import main
model = AutoModelForImageTextToText.from_pretrained("llava")
with tokenprune.apply(model, "divprune", keep_ratio=0.5):
    pass
main(["verify", "llava", "a.png", "What?", "--new-tokens", "1"])
"""


def test_a_model_in_a_folder_reaches_nobody(alone, tmp_path):
    write_llava(tmp_path / "llava")
    noise(60, 40).save(tmp_path / "a.png")
    done, attempts = alone("-c", APPLIED, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert attempts == []


REFUSALS = """
import json, sys
from geollava.commands.main import main
for arguments in json.load(sys.stdin):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 2, (arguments, end.code)
from transformers import AutoProcessor
from geollava.model.published import tower_config
from tokenprune.hub import loading
for load in AutoProcessor.from_pretrained, lambda name: tower_config(name, "."):
    try:
        with loading("some/model"):
            load("some/model")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
"""


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_hub_name_is_one_line_that_names_the_variable(variable, alone, tmp_path):
    pytest.importorskip("datasets")
    noise(60, 40).save(tmp_path / "a.png")
    (tmp_path / "q.txt").write_text("What?\n")
    (tmp_path / "run.yaml").write_text("model: some/model\noutput: run\ndata: {files: [a.json]}\n")
    commands = [
        ["ask", "a.png", "What?", "--model", "some/model"],
        ["batch", ".", "--questions", "q.txt", "--out", "b.parquet", "--model", "some/model"],
        ["evaluate", "xlrs", "--data", "some/data", "--out", "out"],
        ["train", "run.yaml"],
    ]
    environment = {"HF_HUB_OFFLINE": "", variable: "1"}
    done, attempts = alone("-c", REFUSALS, given=json.dumps(commands), **environment)
    assert done.returncode == 0, done.stderr
    assert attempts == []
    absent = (
        "error: some/{} is neither a folder here nor whole in the hub's cache, and {} forbids to "
        "download it"
    )
    kinds = ["model", "model", "data", "model", "model"]
    *lines, tower = done.stderr.splitlines()
    assert lines == [absent.format(kind, variable) for kind in kinds]
    assert tower.endswith(f"nor a folder, nor on the hub, which {variable} forbids to ask")
