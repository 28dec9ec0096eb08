"""The benchmarks of whole commands, on scenes so small that only their rows matter."""

from __future__ import annotations

import sys

import pytest

from benchmarks import batch, results, training_step


@pytest.fixture
def rows_of(monkeypatch, tmp_path):
    def rows_of(script, *options):
        monkeypatch.setattr(results, "FOLDER", tmp_path)
        monkeypatch.setattr(sys, "argv", ["script", *map(str, options)])
        script.main()
        (path,) = tmp_path.glob("*/*.jsonl")
        return results.read(path)

    return rows_of


@pytest.mark.slow
def test_batch(rows_of):
    pytest.importorskip("ray")
    one, two = rows_of(batch, "--scenes", 8, "--side", 336, "--repeats", 1)
    assert (one["impl"], two["impl"]) == ("1 worker", "2 workers")
    assert one["times_faster"] == 1
    assert two["times_faster"] == pytest.approx(
        two["scenes_per_minute"] / one["scenes_per_minute"], abs=0.01
    )


@pytest.mark.slow
def test_training_step(rows_of):
    (row,) = rows_of(training_step, "--side", 672)
    assert row["shape"] == [672, 672]
    assert row["seconds"] > 0
    assert row["peak_memory_mib"] > 200  # torch alone takes that
