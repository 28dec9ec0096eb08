"""The benchmark measures what it says, and reports nothing on results that differ."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from benchmarks import measure, plot, results, run
from benchmarks.cases import GREEDY, Case, differences


def test_extra_memory_sees_what_a_call_allocates():
    assert measure.extra_memory_mib(prepare_allocation, 64) == pytest.approx(64, abs=8)
    assert measure.extra_memory_mib(prepare_allocation, 0) < 8


def prepare_allocation(mib):
    torch.set_num_threads(1)
    return lambda: torch.ones(mib * 2**18).sum()


def test_turns_are_taken():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = measure.interleaved_seconds(calls, 3)
    assert "".join(order) == "abababab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_rows_are_replaced_by_key(tmp_path):
    row = dict.fromkeys(results.KEY, "x")
    results.upsert([row | {"value": 1}, row | {"impl": "y", "value": 2}], "device", tmp_path)
    path = results.upsert([row | {"value": 3}], "device", tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["impl"], r["value"]) for r in rows] == [("x", 3), ("y", 2)]
    assert [file.name for file in tmp_path.iterdir()] == ["device.jsonl"]


def test_differences_are_found():
    case = Case("background_anchored", (2, (6, 5), 16, 4), torch.float32)
    result, dense = (run.prepare(case, name, "cpu", 2)() for name in ("reference", "dense"))
    assert differences(case, result, dense) == []
    assert differences(case, result, dense._replace(roots=dense.roots + 1)) == ["roots"]
    moved = dense._replace(features=dense.features + 1e-3)
    assert differences(case, result, moved) == ["features"]
    swapped = dense._replace(keep_indices=dense.keep_indices + 1)
    assert differences(case, result, swapped) == ["kept indices"]


@pytest.mark.parametrize("op", ["cls_attention", "attention_received"])
def test_attention_baselines_agree(op):
    case = Case(op, (1, 2, 33, 8), torch.float32)
    result, dense = (run.prepare(case, name, "cpu", 2)() for name in ("reference", "dense"))
    assert differences(case, result, dense) == []
    assert differences(case, result, dense + 1) == ["weights"]


@pytest.mark.parametrize("op", GREEDY)
def test_greedy_baselines_agree(op):
    case = Case(op, (3, 40, 32, 8), torch.float32)
    for impl in run.implementations(case, "cpu", compiled=False):
        result, dense = (run.prepare(case, name, "cpu", 2)() for name in (impl, "dense"))
        if impl != "dense":
            assert differences(case, result, dense) == []
            assert differences(case, result, dense + 1) == ["kept indices"]


def test_what_must_move():
    anchored = Case("background_anchored", (2, (3, 3), 16, 4), torch.bfloat16)
    assert anchored.bytes_at_least() == 2 * (2 * 16 * (9 + 1 + 4) + 8 * 9)
    received = Case("attention_received", (1, 2, 10, 8), torch.float32)
    assert received.bytes_at_least() == 2 * (4 * 8 * 20 + 4 * 10)


def test_rows_and_plot(tmp_path, monkeypatch):
    # Each in a new process, the three times of an implementation in one.
    monkeypatch.setattr(measure, "extra_memory_mib", functools.cache(measure.extra_memory_mib))
    case = Case("background_anchored", (2, (6, 5), 16, 4), torch.float32)
    rows = run.measure_case(case, "cpu", 2, 2, False, 1e9)
    assert [row["impl"] for row in rows] == ["dense", "product alone", "reference"]
    assert rows[0]["times_faster"] == 1
    path = results.upsert(rows, "device", tmp_path)
    figure = plot.draw(results.read(path), "device")
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
