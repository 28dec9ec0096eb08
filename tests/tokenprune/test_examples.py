"""The examples run as they are printed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from .hosts import HOSTS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_reduce_any_vlm(monkeypatch, capsys):
    script = str(EXAMPLES / "reduce_any_vlm.py")
    monkeypatch.setattr(sys, "argv", [script, "--max-new-tokens", "2", "--method", "fastervlm"])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    assert all(f"\n{name}\n" in printed for name in HOSTS)
    assert printed.count("KV cache saved") == len(HOSTS)
