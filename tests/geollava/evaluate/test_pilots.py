"""The paper's pilot studies: background found, dropped and measured; tokens of objects left out."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from geollava.answering.encoding import SceneTokens
from geollava.evaluate.models import controls
from geollava.evaluate.models.background import background_prototypes, similarity
from geollava.evaluate.models.opening import open_model
from geollava.evaluate.studies import ablation
from geollava.evaluate.studies.ablation import remaining, tokens_in
from geollava.evaluate.studies.background_share import measure, windows_of
from geollava.imagery import Canvas, as_scene
from geollava.model.token_reduction import ReducedTokens


def kept_all(crops, grid):
    """Every token of some crops, kept as it is."""
    count = grid[0] * grid[1]
    indices = torch.arange(count).expand(crops, count)
    return ReducedTokens(
        features=torch.zeros(crops, count, 4),
        keep_indices=indices,
        valid=torch.ones(crops, count, dtype=torch.bool),
        assignment=indices,
        scores=torch.zeros(crops, count),
        grid_size=grid,
    )


def two_grounds_and_things(generator):
    """[T, D] tokens of two kinds of ground with noise, and 12 things unlike both and each other."""
    grounds = torch.randn(2, 32, generator=generator)
    tokens = grounds.repeat_interleave(100, 0) + 0.2 * torch.randn(200, 32, generator=generator)
    things = torch.randn(12, 32, generator=generator)
    return torch.cat([tokens, things])


def test_background_is_what_covers_much():
    tokens = two_grounds_and_things(torch.Generator().manual_seed(0))
    prototypes = background_prototypes(tokens)
    assert torch.allclose(prototypes.norm(dim=1), torch.ones(len(prototypes)))
    cosine = similarity(tokens, prototypes)
    assert cosine[:200].min() > 0.9
    assert cosine[200:].max() < 0.8
    assert torch.equal(background_prototypes(tokens), prototypes)
    one = torch.ones(5, 3)
    assert similarity(one, background_prototypes(one)).min() > 0.999
    with pytest.raises(ValueError, match="at least one token"):
        background_prototypes(torch.zeros(0, 3))


def test_background_is_pruned_over_the_whole_image():
    tokens = two_grounds_and_things(torch.Generator().manual_seed(0))[:208].view(4, 52, 32)
    kept = kept_all(4, (4, 13))
    kept = ReducedTokens(tokens, kept.keep_indices, kept.valid, kept.assignment, kept.scores)
    mask = controls.remaining("background_pruned", kept, 2)
    assert mask.sum() == 8
    assert mask[-1, -8:].all()  # the things, all in the last crop
    lot = controls.remaining("random_pruned", kept, 2)
    assert lot.sum() == 8
    assert not torch.equal(lot, mask)
    assert controls.remaining("uniform", kept, 2).all()


def test_pruned_controls_in_the_model(guessing_checkpoint, questions):
    answerer = open_model(str(guessing_checkpoint), "background_pruned", 8, "cpu", "float32")
    scene = as_scene(questions.parent / "0.png")
    pruned = answerer.see([scene])
    assert pruned.tokens_after == 2 * 8
    model = answerer.model
    features = pruned.content.encode()[0].project(model)
    assert len(features) == 2 * 8
    answerer.reduce("spatial_pool", 16)
    whole = answerer.see([scene]).content.encode()[0].project(model)
    places = [(whole == token).all(1).nonzero().item() for token in features]
    assert places == sorted(places)
    (reply,) = answerer.ask(pruned, [answerer.prepare(pruned, "How many?", 2)], 2)
    assert reply.text


def test_tokens_in_a_box():
    # An image of 200 x 100 pixels on a canvas of 400 x 400: scaled by 2, from row 100 on.
    # Cells of 50 pixels.
    tokens = SceneTokens(kept_all(4, (4, 4)), Canvas((200, 100), (400, 400), 200))
    inside = tokens_in([(30, 10, 60, 40)], tokens)
    # On the canvas x 60 to 120, y 120 to 180: columns 1 and 2, rows 2 and 3 of the first crop.
    assert inside[0].view(4, 4).nonzero().tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]
    assert not inside[1:].any()
    across = tokens_in([(90, 10, 110, 20)], tokens)
    assert across.any(1).tolist() == [True, True, False, False]
    assert not tokens_in([], tokens).any()


def test_as_many_random_tokens_elsewhere():
    inside = torch.zeros(3, 20, dtype=torch.bool)
    inside[1, 4:9] = True
    assert remaining("whole", inside, "?").all()
    assert torch.equal(remaining("without objects", inside, "?"), ~inside)
    lot = remaining("without random", inside, "?")
    assert (~lot).sum() == 5
    assert (lot | ~inside).all()
    assert torch.equal(lot, remaining("without random", inside, "?"))
    assert not torch.equal(lot, remaining("without random", inside, "another?"))


def test_ablation(run, questions, guessing_checkpoint, tmp_path):
    out = tmp_path / "out"
    rows = json.loads(questions.read_text())[:12]
    for row, box in zip(rows, [[0, 0, 90, 90], [100, 50, 180, 200]] * 6, strict=True):
        row["question"] = f"{row['question']} Look at {box}."
        row["image"] = [str(questions.parent / row["image"][0])]
    (tmp_path / "d.json").write_text(json.dumps([*rows, {**rows[0], "question": "No box?"}]))
    command = [
        "evaluate", "ablation", "xlrs", "--data", tmp_path / "d.json", "--out", out, "--model",
        guessing_checkpoint, "--max-new-tokens", 1, "--method", "spatial_pool",
    ]  # fmt: skip
    code, _, err = run(*command)
    assert code == 0, err
    table = json.loads((out / "ablation.json").read_text())
    assert table["questions"] == len(rows)
    whole, objects, lot = table["conditions"]
    assert [row["condition"] for row in (whole, objects, lot)] == list(ablation.CONDITIONS)
    assert whole["dropped_tokens"] == 0 < objects["dropped_tokens"] == lot["dropped_tokens"]
    assert objects["difference"] == pytest.approx(objects["micro"] - whole["micro"])
    lines = [
        [json.loads(line) for line in (out / "cells" / name / "predictions.jsonl").open()]
        for name in ("whole", "without-objects", "without-random")
    ]
    assert lines[0] != lines[1] != lines[2]
    assert "| without objects | " in (out / "ablation.md").read_text()
    assert Image.open(out / "ablation.png").width > 300

    plain = ["evaluate", "xlrs", *command[3:], "--out", tmp_path / "plain", "--limit", len(rows)]
    assert run(*plain)[0] == 0
    asked = [json.loads(line) for line in (tmp_path / "plain" / "predictions.jsonl").open()]
    assert [line["reply"] for line in lines[0]] == [line["reply"] for line in asked]


@torch.no_grad()
def patches_alone(model):
    """The model with a tower whose tokens know nothing of their place and of each other."""
    model = copy.deepcopy(model)
    encoder = model.model.vision_tower.encoder
    encoder.embeddings.position_embedding.weight.zero_()
    for layer in encoder.encoder.layers:
        for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    return model


def test_windows_lie_within_the_image(default_pair):
    # 672 x 300 pixels fill the width of a canvas of two crops; 18 rows beyond it are black.
    model, processor = default_pair
    model = patches_alone(model)
    windows = windows_of(model, processor, as_scene(Image.new("RGB", (672, 300), (90, 120, 60))))
    width = model.config.vision_config.hidden_size
    assert windows.shape == (4 * 12, width)
    assert similarity(windows, background_prototypes(windows)).min() > 0.999


def test_background_share(run, default_pair, tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    pixels = np.full((672, 672, 3), (90, 120, 60), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "even.png")
    pixels[:, 336:] = np.random.default_rng(0).integers(0, 256, (672, 336, 3))
    Image.fromarray(pixels).save(folder / "half.png")
    code, _, err = run("evaluate", "background", folder, "--out", tmp_path / "out")
    assert code == 0, err
    results = json.loads((tmp_path / "out" / "background.json").read_text())
    even, half = (row["share"] for row in results["scenes"])
    assert even == 1
    assert results["share"] == pytest.approx((1 + half) / 2)
    assert results["curve"] == sorted(results["curve"], reverse=True)
    assert (results["largest"], results["scenes"][0]["windows"]) == (1, 12 * 12)
    assert Image.open(tmp_path / "out" / "background.png").width > 500
    err = run("evaluate", "background", folder, "--out", tmp_path, "--threshold", 2)[2]
    assert "--threshold must be a cosine between 0 and 1, got 2.0" in err
    with pytest.raises(ValueError, match="between 0 and 1"):
        measure(*default_pair, [], 1.0)
