"""The examples run as they are printed."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import torch

from .hosts import HOSTS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_reduce_any_vlm(monkeypatch, capsys):
    script = str(EXAMPLES / "reduce_any_vlm.py")
    monkeypatch.setattr(sys, "argv", [script, "--max-new-tokens", "2", "--method", "fastervlm"])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    assert all(f"\n{name}\n" in printed for name in HOSTS)
    assert printed.count("KV cache saved") == len(HOSTS)


def test_varlen_attention(capsys):
    runpy.run_path(str(EXAMPLES / "varlen_attention.py"), run_name="__main__")
    printed = capsys.readouterr().out
    kept, packed = re.search(r"\[([\d, ]+)\], packed \[(\d+), 256\]", printed).groups()
    counts = [int(count) for count in kept.split(",")]
    assert len(set(counts)) == len(counts) == 6
    assert sum(counts) == int(packed) == 600
    assert float(printed.split()[-1]) < (0.05 if torch.cuda.is_available() else 1e-5)
