"""The checkpoint that is used when none is named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from geollava import default_model
from geollava.imagery import cut_crops

from .conftest import noise


def test_the_same_everywhere():
    first, second = (default_model.build()[1].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_made_once_and_never_half(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: default_model.default_checkpoint(), range(2)))
    assert len(folders) == 1
    (folder,) = folders
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert default_model.default_checkpoint() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made


def test_bytes_in_bytes_out():
    tokenizer = default_model.byte_tokenizer()
    text = "Wie viele Schiffe? 卫星 \x00 <b>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(text)["input_ids"]) == len(text.encode())


def test_even_ground_flows_together_and_what_stands_out_is_kept(default_pair):
    model, _ = default_pair
    scene = Image.new("RGB", (336, 336), (60, 110, 160))
    scene.paste(noise(42, 28), (140, 168))  # patches: columns 10 to 12, rows 12 and 13
    kept = model.encode_crops(cut_crops(np.array(scene), 336))
    object_tokens = {row * 24 + col for row in (12, 13) for col in (10, 11, 12)}
    roots = kept.assignment[0].tolist()
    ground = [root for token, root in enumerate(roots) if token not in object_tokens]
    assert max(ground.count(root) for root in set(ground)) > 0.8 * len(ground)
    chosen = set(kept.keep_indices[0][kept.valid[0]].tolist())
    assert {roots[token] for token in object_tokens} <= chosen
