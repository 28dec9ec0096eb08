"""Recorded cases of official code, replayed; and altered ones, which must differ."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .replay import Recorded, verdict
from .replay.__main__ import main
from .replay.forms import FORMS


def cases(golden_folder):
    return sorted(golden_folder.glob("*.safetensors"))


def test_every_recorded_case_of_a_known_form_is_equal(golden):
    seen = set()
    for path in cases(golden / "methods"):
        recorded = Recorded.read(path)
        if recorded.method in FORMS:
            seen.add(recorded.method)
            assert verdict(recorded, FORMS[recorded.method]) == "equal", recorded.name
    assert seen == set(FORMS)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_altered_cases_differ(golden, name, tmp_path, capsys):
    """Any recorded output that is changed, and any input that decides, must be noticed."""
    path = next(path for path in cases(golden / "methods") if Recorded.read(path).method == name)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    altered = {key: value.clone() for key, value in tensors.items()}
    for key, value in altered.items():
        if key.startswith("out."):
            altered[key] = value + 1
    save_file(altered, tmp_path / "altered.safetensors", metadata=about)
    assert main([str(tmp_path / "altered.safetensors")]) == 1
    assert "altered: differs, " in capsys.readouterr().out


def test_files_that_are_no_cases(tmp_path, capsys):
    assert main([]) == 2
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"method": "nobody"})
    assert main([str(tmp_path / "x.safetensors")]) == 2
    about = {"method": "nobody", "options": "{}"}
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=about)
    assert main([str(tmp_path / "x.safetensors")]) == 1
    assert "x: differs, no method here has this form" in capsys.readouterr().out
    (tmp_path / "y.safetensors").write_text(json.dumps({}))
    assert main([str(tmp_path / "y.safetensors")]) == 2
    assert "no recorded case" in capsys.readouterr().err
