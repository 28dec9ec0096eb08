"""The imagery benchmarks measure what they say."""

from __future__ import annotations

import torch
from PIL import Image

from benchmarks import end_to_end, imagery
from benchmarks.baselines import published_crops
from geollava import GeoLlavaImageProcessor


def test_baseline_and_ours_are_equal_and_differences_are_found(tmp_path, monkeypatch):
    path = tmp_path / "scene.jpg"
    imagery.make_scene(path, 800)
    assert Image.open(path).size == (800, 800)
    assert imagery.largest_difference(path) < 1e-6
    published = published_crops.crops_of(published_crops.decode(path))
    thumbnail = GeoLlavaImageProcessor(do_normalize=True, include_thumbnail=True)(path)
    torch.testing.assert_close(thumbnail["pixel_values"], published, atol=1e-6, rtol=0)
    monkeypatch.setattr(published_crops, "crops_of", lambda image: published.roll(1, 0))
    assert imagery.largest_difference(path) > 0.1


def test_end_to_end_rows_and_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "in_new_process", lambda call, *arguments: call(*arguments))
    row = end_to_end.measure_side(400, None, "cpu", 2, 1)
    assert row["crops"] == 4
    assert row["tokens"] == [4 * 576, 4 * 24]
    assert list(row["seconds"]) == list(end_to_end.STAGES)
    end_to_end.draw([row], "title").savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
