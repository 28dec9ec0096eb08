"""What serving does without vLLM: options, the command, positions. The rest: tests/serving/vllm."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from tokenprune.budget import Budget
from tokenprune.hosts.layout import ImageLayout
from tokenprune.serving.vllm import launch
from tokenprune.serving.vllm.hosts import parts_of
from tokenprune.serving.vllm.options import KEY, ServingOptions
from tokenprune.serving.vllm.positions import prompt_positions, shift_columns, split_columns


def options(**given):
    return ServingOptions.of(SimpleNamespace(**{KEY: {"method": "divprune", **given}}))


def test_options_of_a_server_and_of_a_request():
    assert ServingOptions.of(SimpleNamespace()) is None
    server = options(keep_ratio=0.25)
    assert server.budget_of({}) == server.budget == Budget(keep_ratio=0.25)
    assert server.budget_of({KEY: {"num_keep": 3}}) == Budget(num_keep=3)
    assert not server.build().strict
    assert server.build().keep_ratio is None
    quarter, half = server.identity(Budget(None, 0.25)), server.identity(Budget(None, 0.5))
    assert (
        quarter
        != half
        != options(keep_ratio=0.5, options={"impl": "reference"}).identity(Budget(None, 0.5))
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "exactly one of num_keep and keep_ratio"),
        ({"keep_ratio": 0}, "keep_ratio must be in"),
        ({"keep_ratio": True}, "keep_ratio must be a number"),
        ({"num_keep": 1.5}, "num_keep must be"),
        ({"method": "tome"}, "a request's options must be among num_keep, keep_ratio, got method"),
        ("a", "tokenprune must be an object"),
        (None, "tokenprune must be an object"),
    ],
)
def test_a_request_that_cannot_be_served(request_, message):
    with pytest.raises(ValueError, match=message):
        options(keep_ratio=0.25).budget_of({KEY: request_})


@pytest.mark.parametrize("name", ["keep_ratio", "num_keep", "tokenprun", "token-prune"])
def test_options_of_a_request_in_the_wrong_place(name):
    with pytest.raises(ValueError, match=f"must be inside tokenprune, as in .*, got {name}$"):
        options(keep_ratio=0.25).budget_of({name: 0.5, "max_pixels": 100_352})


def test_options_of_the_image_processor_are_let_through():
    server = options(keep_ratio=0.25)
    assert server.budget_of({"max_pixels": 100_352, "do_resize": False}) == server.budget
    asked = {"max_pixels": 100_352, KEY: {"num_keep": 3}}
    assert server.budget_of(asked) == Budget(num_keep=3)


def test_the_command_becomes_the_server(monkeypatch):
    from tokenprune import cli

    called = []
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(launch.os, "execv", lambda *call: called.append(call))
    given = ["--keep-ratio", "0.25", "--options", '{"impl": "reference"}', "--port", "8001"]
    with pytest.raises(SystemExit) as ended:  # nothing took our place
        cli.main(["serve", "some/model", *given])
    assert ended.value.code == 0
    ((program, command),) = called
    assert program == command[0] == sys.executable
    assert command[1:5] == ["-m", launch.SERVER, "--model", "some/model"]
    assert command[5] == launch.OVERRIDES
    assert json.loads(command[6]) == {
        KEY: {"method": "divprune", "options": {"impl": "reference"}, "keep_ratio": 0.25}
    }
    assert command[7:] == ["--port", "8001"]


def test_without_vllm_the_command_names_the_extra(monkeypatch, capsys):
    from tokenprune import cli

    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "some/model", "--num-keep", "8"])
    assert ended.value.code == 2
    assert "tokenprune-vlm[vllm]" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shifts_survive_any_dtype(dtype):
    layout = ImageLayout.one_grid(700, 300)
    kept = torch.tensor([0, 1, 299, 300, 77_077, 209_999])
    features = torch.randn(len(kept), 5).to(dtype)
    image = torch.cat([features, shift_columns(kept, layout, dtype)], dim=1)
    video = torch.randn(2, 5).to(dtype)
    (first, second), shifts = split_columns([image, video], 5)
    assert torch.equal(first, features)
    assert torch.equal(second, video)
    rows, cols = kept // 300, kept % 300
    assert shifts.shape == (3, 8)
    assert torch.equal(shifts[:, :6], torch.stack([torch.zeros_like(kept), rows, cols]))
    assert not shifts[:, 6:].any()


@dataclass(frozen=True)
class Place:
    offset: int
    length: int


@dataclass(frozen=True)
class Feature:
    modality: str
    mm_position: Place
    grid: tuple[int, int]


def of_whole(tokens, features):
    """Positions as mRoPE lays them out for images of so many rows and columns."""
    columns, nxt, at = [], 0, 0
    for feature in features:
        place, (rows, cols) = feature.mm_position, feature.grid
        for _ in range(place.offset - at):
            columns.append((nxt, nxt, nxt))
            nxt += 1
        assert place.length == rows * cols
        columns += [(nxt, nxt + row, nxt + col) for row in range(rows) for col in range(cols)]
        nxt += max(rows, cols)
        at = place.offset + place.length
    columns += [(n, n, n) for n in range(nxt, nxt + len(tokens) - at)]
    positions = torch.tensor(columns).T
    return positions, int(positions.max()) + 1 - len(tokens)


def test_positions_of_a_prompt_are_those_of_the_whole_one():
    """Kept tokens get, origin and shift together, what they have in the prompt of whole images."""
    text, mark = 7, 9
    grids, kept = [(4, 5), (2, 2), (3, 6)], [[1, 7, 19], [0, 1, 2, 3], [17]]
    whole, short, of_short, of_all, stay = [text] * 3, [text] * 3, [], [], [0, 1, 2]
    for number, (grid, own) in enumerate(zip(grids, kept, strict=True)):
        modality = "video" if number == 1 else "image"
        total = grid[0] * grid[1]
        of_all.append(Feature(modality, Place(len(whole), total), grid))
        of_short.append(Feature(modality, Place(len(short), len(own)), grid))
        stay += [len(whole) + column for column in own]
        stay += range(len(whole) + total, len(whole) + total + 2)
        whole += [mark] * total + [text] * 2
        short += [mark] * len(own) + [text] * 2
    expected, ahead = of_whole(whole, of_all)
    positions, ahead_of_short = prompt_positions(
        short, of_short[::-1], lambda feature: feature.grid[0] * feature.grid[1], of_whole
    )
    for feature, own in zip(of_short, kept, strict=True):
        if feature.modality == "image":
            layout = ImageLayout.one_grid(*feature.grid)
            columns = shift_columns(torch.tensor(own), layout, torch.bfloat16)
            _, shifts = split_columns([torch.cat([torch.zeros(len(own), 1), columns], 1)], 1)
            start = feature.mm_position.offset
            positions[:, start : start + len(own)] += shifts
    assert torch.equal(positions, expected[:, stay])
    assert ahead_of_short + len(short) == ahead + len(whole)


def test_two_that_count_an_image_differently():
    adapter = SimpleNamespace(unit="image", layout=lambda size: ImageLayout.one_grid(*size))
    assert [part.num_tokens for part in parts_of(adapter, (2, 3), 6)] == [6]
    with pytest.raises(RuntimeError, match="vLLM has 7 tokens for an image of size"):
        parts_of(adapter, (2, 3), 7)
    by_crop = SimpleNamespace(unit="crop", layout=lambda size: ImageLayout.one_grid(2, 3))
    assert [part.num_tokens for part in parts_of(by_crop, None, 18)] == [6, 6, 6]
