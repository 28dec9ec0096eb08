"""The examples run as they are printed."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import torch
from PIL import Image

from tokenprune.methods.visionselector import VisionSelector

from .hosts import HOSTS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_reduce_any_vlm(monkeypatch, capsys):
    script = str(EXAMPLES / "reduce_any_vlm.py")
    monkeypatch.setattr(sys, "argv", [script, "--max-new-tokens", "2", "--method", "fastervlm"])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    assert all(f"\n{name}\n" in printed for name in HOSTS)
    assert printed.count("KV cache saved") == len(HOSTS)


def test_prune_video(monkeypatch, capsys, tmp_path):
    script, picture = str(EXAMPLES / "prune_video.py"), tmp_path / "kept.png"
    monkeypatch.setattr(sys, "argv", [script, "--picture", str(picture)])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    kept = [int(count) for count in re.findall(r"frame \d: (\d+) of 16 tokens", printed)]
    assert len(kept) == 6
    assert kept[0] == 16
    assert sum(kept) == round(0.4 * 96)
    with Image.open(picture) as drawn:
        assert drawn.size == (6 * 128, 128)


def test_conversation(monkeypatch, capsys):
    script = str(EXAMPLES / "conversation.py")
    monkeypatch.setattr(sys, "argv", [script, "--max-new-tokens", "4"])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    numbers = re.findall(r"has (\d+) tokens, the cache holds (\d+)", printed)
    turns = [(int(columns), int(held)) for columns, held in numbers]
    assert len(turns) == 3
    assert {columns - held for columns, held in turns} == {12}  # the dropped of 16 visual tokens
    assert [columns for columns, _ in turns] == sorted(columns for columns, _ in turns)


def test_learn_selector(monkeypatch, capsys, tmp_path):
    script, weights = str(EXAMPLES / "learn_selector.py"), tmp_path / "selector.safetensors"
    monkeypatch.setattr(sys, "argv", [script, str(weights)])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    kept = {
        name: float(share) for name, share in re.findall(r"^(\w+): ([\d.]+)% of", printed, re.M)
    }
    assert list(kept) == ["random", "untrained", "trained"]
    assert kept["random"] < 10  # 4 of 64 are marked
    assert kept["untrained"] < 60
    assert kept["trained"] > 90
    assert VisionSelector.load(weights).q_weight.shape == (16, 32)


def test_soft_top_k_of_learn_selector():
    soft_top_k = runpy.run_path(str(EXAMPLES / "learn_selector.py"))["soft_top_k"]
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(3, 9, dtype=torch.float64, generator=generator).requires_grad_()
    for num_keep in (1, 4, 8):
        shares = soft_top_k(scores, num_keep)
        torch.testing.assert_close(shares.sum(1), torch.full((3,), num_keep, dtype=torch.float64))
        assert torch.equal(shares.argsort(1), scores.argsort(1))
        # The gradient of the shares, t with them: by the implicit function theorem.
        upstream = torch.randn(3, 9, dtype=torch.float64, generator=generator)
        (gradient,) = torch.autograd.grad(shares, scores, upstream)
        slopes = shares * (1 - shares)
        mean = (upstream * slopes).sum(1, keepdim=True) / slopes.sum(1, keepdim=True)
        torch.testing.assert_close(gradient, slopes * (upstream - mean))
        assert torch.autograd.gradcheck(lambda s, k=num_keep: soft_top_k(s, k), scores)


def test_varlen_attention(capsys):
    runpy.run_path(str(EXAMPLES / "varlen_attention.py"), run_name="__main__")
    printed = capsys.readouterr().out
    kept, packed = re.search(r"\[([\d, ]+)\], packed \[(\d+), 256\]", printed).groups()
    counts = [int(count) for count in kept.split(",")]
    assert len(set(counts)) == len(counts) == 6
    assert sum(counts) == int(packed) == 600
    assert float(printed.split()[-1]) < (0.05 if torch.cuda.is_available() else 1e-5)
