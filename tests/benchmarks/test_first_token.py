"""The published flow written out says what ours says, and a difference would be seen."""

from __future__ import annotations

import torch

from benchmarks import first_token, imagery
from benchmarks.baselines import published_flow


def test_flows_agree_and_differences_are_found(tmp_path, monkeypatch):
    path = tmp_path / "scene.jpg"
    imagery.make_scene(path, 800)
    assert first_token.largest_difference(path, "cpu") < first_token.TOLERANCE
    kept_tokens = published_flow.kept_tokens
    monkeypatch.setattr(
        published_flow, "kept_tokens", lambda *args: kept_tokens(*args).roll(1, dims=1)
    )
    assert first_token.largest_difference(path, "cpu") > first_token.TOLERANCE


def test_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(first_token, "in_new_process", lambda call, *rest: call(*rest))
    path = tmp_path / "scene.jpg"
    imagery.make_scene(path, 700)
    rows = [
        first_token.measure_flow(flow, path, 700, "small", "cpu", 1)
        for flow in ("ours", "published")
    ]
    assert [row["impl"] for row in rows] == ["ours", "published"]
    for row in rows:
        stages = row["seconds"]
        assert min(stages.values()) >= 0
        without = sum(stages.values()) - stages["decode"]
        assert abs(row["latency_ms"]["p50"] - 1e3 * without) < 10


def test_full_size_is_the_published_model():
    config = first_token.GeoLlavaConfig(**first_token.SIZES["full"])
    with torch.device("meta"):
        model = first_token.GeoLlavaForConditionalGeneration(config)
    assert 7.8e9 < sum(parameter.numel() for parameter in model.parameters()) < 8.2e9
