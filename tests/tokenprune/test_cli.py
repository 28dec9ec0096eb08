"""`tokenprune verify`: one command that proves a reduction on a model in a folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import tokenprune
from tokenprune import cli

from .checkpoint import write_llava


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    Image.fromarray(torch.randint(0, 256, (80, 90, 3), dtype=torch.uint8).numpy()).save(path)
    return path


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return end.value.code, output.out, output.err

    return run


def test_verified(run, llava, picture):
    code, out, err = run("verify", llava, picture, "What is here?", "--keep-ratio", 0.25)
    assert (code, err) == (0, "")
    assert out.startswith("divprune, 16 -> 4 visual tokens in LlavaForConditionalGeneration")
    assert out.endswith("verified\n")


def test_no_image(run, llava, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    code, out, err = run("verify", llava, path, "What is here?")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path} must be an image: ")


def test_an_adapter_beside_the_weights_is_refused(run, llava, picture, tmp_path):
    folder = shutil.copytree(llava, tmp_path / "llava")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    code, out, err = run("verify", folder, picture, "What is here?")
    assert (code, out) == (2, "")
    assert err == f"error: {folder} must hold whole weights, got an adapter (adapter_config.json)\n"


def test_as_json(run, llava, picture):
    options = ("--method", "fastervlm", "--new-tokens", 2, "--json")
    code, out, _ = run("verify", llava, picture, "What is here?", *options)
    report = json.loads(out)
    assert code == 0
    assert report["ok"] is True
    assert report["method"] == "fastervlm"
    assert report["largest_difference"] < 1e-4
    assert {check["status"] for check in report["checks"]} == {"ok"}


def test_not_verified_is_an_exit_code(run, llava, picture):
    code, out, _ = run("verify", llava, picture, "What is here?", "--dtype", "bfloat16")
    assert code == 1
    assert "not checked" in out
    assert out.endswith("NOT VERIFIED\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"image": "missing.png"}, "missing.png"),
        ({"image": __file__}, "cannot identify image file"),
        ({"--method": "best"}, "method must be one of"),
        ({"--keep-ratio": "1.5"}, "keep_ratio must be in (0, 1], got 1.5"),
        ({"--new-tokens": "0"}, "new_tokens must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(run, llava, picture, change, message):
    named = {"model": llava, "image": picture}
    named |= {key: change[key] for key in named if key in change}
    options = [part for key, value in change.items() if key[0] == "-" for part in (key, value)]
    code, out, err = run("verify", named["model"], named["image"], "What?", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert message in err


def test_usage(run):
    code, _, err = run("verify", "model")
    assert code == 2
    assert "required: image, question" in err


def test_a_reader_that_has_read_enough():
    """`tokenprune methods | head -1`: the pipe is closed before anything is written."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenprune.cli", "methods"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0


def test_interrupted(run, llava, picture, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)
    result = run("verify", llava, picture, "What is here?")
    assert result == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("shape", [(), ("--markdown",), ("--json",)])
def test_hosts_lists_every_type(shape, capsys):
    cli.main(["hosts", *shape])
    printed = capsys.readouterr().out
    listed = tokenprune.list_hosts()
    assert all(host.model_type in printed for host in listed)
    if shape == ("--json",):
        assert [one["supported"] for one in json.loads(printed)] == [
            host.supported for host in listed
        ]
    else:
        assert len(printed.splitlines()) == len(listed) + 1 + len(shape)
