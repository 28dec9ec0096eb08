"""A scene to ask about, and how a command says no."""

from __future__ import annotations

import pytest

from tests.geollava.conftest import noise


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.jpg"
    noise(900, 600).resize((1200, 800)).save(path)
    return path


def check_refusal(result, message):
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert message in err
