"""The benchmark measures what it says, and reports nothing on results that differ."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import measure, results, run


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
    reference, dense = (run.prepare(name, 2, 2)() for name in ("reference", "dense"))
    assert run.differences(reference, dense) == []
    assert run.differences(reference, dense._replace(roots=dense.roots + 1)) == ["roots"]
    assert run.differences(reference, dense._replace(features=dense.features + 1e-3)) == [
        "features"
    ]
    swapped = dense._replace(keep_indices=dense.keep_indices + 1)
    assert run.differences(reference, swapped) == ["kept indices"]
