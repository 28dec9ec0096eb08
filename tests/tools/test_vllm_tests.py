"""The tests inside vLLM: what their core names is there, and both sides name one release."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tokenprune.serving.vllm.refusals import TESTED

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import vllm_tests  # noqa: E402


def test_the_core_names_tests():
    folders = [ROOT / folder for folder in vllm_tests.TESTS]
    files = [path for folder in folders for path in folder.glob("*.py")]
    texts = "".join(f"{path.name}\n{path.read_text()}" for path in files)
    words = set(re.findall(r"[\w.]+", vllm_tests.CORE)) - {"or", "and", "not"}
    assert len(words) > 3
    for word in words:
        assert re.search(rf"(\b|_){re.escape(word)}(\b|_)", texts), word


def test_the_tested_release_is_the_promised_one():
    low, high = (".".join(map(str, numbers)) for numbers in TESTED)
    assert f'"vllm>={low},<{high};' in (ROOT / "pyproject.toml").read_text()
    numbers = tuple(map(int, vllm_tests.VERSION.split(".")[:2]))
    assert TESTED[0] <= numbers < TESTED[1]
