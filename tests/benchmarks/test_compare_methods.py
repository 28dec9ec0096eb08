"""The comparison measures what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import compare_methods
from benchmarks.compare_methods import (
    make_scenes,
    objects_kept,
    objects_seen,
    reconstruction_error,
)
from tokenprune import get_method
from tokenprune.selection import best, select_tokens


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(3, (12, 12), 64)


def keep(scenes, scores, num_keep):
    return select_tokens(scenes.tokens, best(scores, num_keep), scores)


def test_who_keeps_the_objects_has_kept_and_seen_them(scenes):
    planted = scenes.objects.float()
    count = int(scenes.objects.sum(1).max())
    result = keep(scenes, planted, count)
    assert objects_kept(scenes, result) == objects_seen(scenes, result) == 1
    nothing = keep(scenes, -planted, count)
    assert objects_kept(scenes, nothing) == 0
    assert objects_seen(scenes, nothing) < 0.1  # the background does not look like them


def test_a_merged_object_is_seen_where_it_is_not_kept(scenes):
    result = get_method("tome").reduce(scenes.tokens, 40)
    assert objects_seen(scenes, result) > objects_kept(scenes, result)


def test_error_is_nothing_for_all_tokens_and_everything_for_the_mean(scenes):
    whole = keep(scenes, torch.zeros(3, 144), 144)
    assert reconstruction_error(scenes.tokens, whole) == pytest.approx(0, abs=1e-5)
    mean = scenes.tokens.features.mean(1, keepdim=True)
    blind = replace(whole, features=mean)
    assert reconstruction_error(scenes.tokens, blind) == pytest.approx(1)


def test_scenes_are_the_same_again(scenes):
    again = make_scenes(3, (12, 12), 64)
    assert torch.equal(again.tokens.features, scenes.tokens.features)
    other = make_scenes(3, (12, 12), 64, seed=1)
    assert not torch.equal(other.objects, scenes.objects)


def test_rows_and_plot(monkeypatch, tmp_path):
    monkeypatch.setattr(compare_methods.measure, "extra_memory_mib", lambda *_: 1.0)
    monkeypatch.setattr(compare_methods, "list_methods", lambda: ["background_anchored", "tome"])
    rows = compare_methods.measure_methods(24, 1, 2)
    assert [row["impl"] for row in rows] == ["background_anchored", "tome"]
    compare_methods.draw(rows).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
