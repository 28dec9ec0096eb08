"""The scoreboard measures what it says, resumes, and its page is of its rows."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import Dinov2Config, Dinov2Model

import tokenprune
from benchmarks.leaderboard import (
    answers,
    composite,
    fetch,
    host,
    kept,
    page,
    pictures,
    recorded,
    rows,
    run,
    tower,
    train_host,
)
from benchmarks.leaderboard.controls import SMALLER, majority, places_of
from benchmarks.leaderboard.intervals import beats, pooled, score_of
from benchmarks.leaderboard.onnx_weights import read_onnx
from benchmarks.leaderboard.tiles import Tile
from tokenprune import VisionTokens

SIDE, IMAGES, WIDTH = 4, 3, 16


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Small pictures where the packages would lie; nothing is downloaded."""
    patch = pytest.MonkeyPatch()
    patch.setattr(fetch, "CACHE", tmp_path_factory.mktemp("cache"))
    random = np.random.default_rng(0)
    aerial = fetch.DEEPFOREST.folder / "deepforest/data"
    aerial.mkdir(parents=True)
    for names in composite.GROUND.values():
        for name in names:
            pixels = random.integers(60, 120, (300, 300, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(aerial / name)
    for split in composite.GROUND:
        folder = fetch.EASY_VQA.folder / "easy_vqa/data" / split
        (folder / "images").mkdir(parents=True)
        questions = []
        for number in range(24):
            shape, color = composite.SHAPES[number % 3], composite.COLORS[number % 8]
            picture = Image.new("RGB", (64, 64), (240, 240, 240))
            ImageDraw.Draw(picture).rectangle((10, 12, 30, 40), fill=color)
            picture.save(folder / "images" / f"{number}.png")
            questions += [["what shape?", shape, number], ["what color?", color, number]]
        (folder / "questions.json").write_text(json.dumps(questions))
    composite.sources.cache_clear()
    composite.ground_picture.cache_clear()
    yield fetch.CACHE
    composite.sources.cache_clear()
    composite.ground_picture.cache_clear()
    patch.undo()


@pytest.fixture(autouse=True, scope="module")
def small_tower():
    """Towers of the same layers, and few channels."""
    patch = pytest.MonkeyPatch()
    for module in (tower, host):
        patch.setattr(module, "tower_config", small_config)
    yield
    patch.undo()


def small_config(side):
    return Dinov2Config(
        hidden_size=WIDTH,
        num_attention_heads=2,
        num_hidden_layers=12,
        image_size=side * tower.PATCH,
    )


def random_tower(side):
    torch.manual_seed(side)
    return Dinov2Model(small_config(side)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def board(packages):
    """Answers of an untrained host behind a random tower."""
    patch = pytest.MonkeyPatch()
    patch.setattr(answers, "load_tower", random_tower)
    patch.setattr(answers, "PICTURES", 4)
    yield answers.AnswersBoard(
        0, packages / "questions", IMAGES, SIDE, train=lambda seed: host.build_host(SIDE, seed)
    )
    patch.undo()


# -- data -----------------------------------------------------------------------------------------


def part(field, value):
    """A field of a Protocol Buffers message: a number, or bytes."""
    if isinstance(value, int):
        return bytes([field << 3, value])
    return bytes([field << 3 | 2, len(value)]) + value


def test_weights_are_read_of_an_onnx_file(tmp_path):
    values = np.arange(6, dtype=np.float32)
    tensor = part(1, 2) + part(1, 3) + part(2, 1) + part(8, b"w") + part(9, values.tobytes())
    integers = part(1, 1) + part(2, 7) + part(8, b"i") + part(9, bytes(8))
    node = part(1, b"x") + part(1, b"w") + part(3, b"/a/MatMul") + part(4, b"MatMul")
    graph = part(1, node) + part(5, tensor) + part(5, integers)
    path = tmp_path / "weights.onnx"
    path.write_bytes(part(1, 8) + part(7, graph))
    found = read_onnx(path)
    assert found.products == {"/a/MatMul": "w"}
    assert list(found.tensors) == ["w"]
    assert found.tensors["w"].tolist() == values.reshape(2, 3).tolist()
    path.write_bytes((part(1, 8) + part(7, graph))[:-9])
    with pytest.raises(ValueError, match="bytes ends"):
        read_onnx(path)


@pytest.mark.parametrize("known", [True, False])
def test_a_wheel_of_other_bytes_is_refused(tmp_path, monkeypatch, known):
    monkeypatch.setattr(fetch, "CACHE", tmp_path)
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("inside.txt", "text")
    digest = fetch.sha256_of(wheel) if known else 64 * "0"
    package = fetch.Package("made", "1.0", digest, "MIT", "nothing")

    def download(command, **_):
        (fetch.Path(command[command.index("-d") + 1]) / "made.whl").write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(fetch.subprocess, "run", download)
    if known:
        assert (fetch.fetched(package) / "inside.txt").read_text() == "text"
    else:
        with pytest.raises(ValueError, match="must have SHA-256"):
            fetch.fetched(package)
        assert not package.folder.exists()


def answer_of(question, things):
    """What a picture's things say, worked out anew."""
    words = question.text.split()
    named = [thing for thing in things if thing.name in question.text]
    match question.kind:
        case "count":
            return {2: "two", 3: "three", 4: "four"}[len(things)]
        case "presence":
            return "yes" if named else "no"
        case "place":
            left, top, right, bottom = named[0].box
            down = "bottom" if (top + bottom) / 2 > 70 else "top"
            return f"{down}-{'right' if (left + right) / 2 > 70 else 'left'}"
        case "color":
            [thing] = [thing for thing in things if thing.shape == words[4]]
            return thing.color
        case "shape":
            [thing] = [thing for thing in things if thing.color == words[4]]
            return thing.shape


def test_composites_are_answered_by_what_lies_in_them(packages):
    kinds = set()
    for number in range(40):
        made = composite.make_composite("test", number)
        again = composite.make_composite("test", number)
        assert made.questions == again.questions
        assert made.image.tobytes() == again.image.tobytes()
        assert len(made.questions) == composite.PER_IMAGE
        for question in made.questions:
            assert question.answer == answer_of(question, made.things)
            assert len(host.ids_of(question.text)) == composite.WORDS
            assert question.answer in host.NUMBERS
            kinds.add(question.kind)
    assert kinds == set(composite.KINDS)
    other = composite.make_composite("train", 0)
    assert other.image.tobytes() != composite.make_composite("test", 0).image.tobytes()


def test_tokens_of_an_object():
    tile = Tile(Image.new("RGB", (40, 40)), "tree", ((0, 0, 25, 10), (31, 31, 33, 34)))
    wide, small = tile.objects(4)
    assert wide.nonzero()[:, 0].tolist() == [0, 1, 2]  # half of the third cell
    assert small.nonzero()[:, 0].tolist() == [15]


# -- statistics and rows --------------------------------------------------------------------------


def test_intervals():
    same = score_of([[1, 2]] * 30)
    assert same == {"value": 0.5, "interval": [0.5, 0.5]}
    mixed = score_of([[1, 1]] * 50 + [[0, 1]] * 50)
    assert mixed["interval"] == pytest.approx([0.4, 0.6], abs=0.02)  # 1.96 * 0.05
    assert not beats(mixed, same)
    assert beats(score_of([[9, 10]] * 5), mixed)
    assert beats(score_of([[1, 10]] * 5), mixed, less=True)
    assert pooled([[[1, 8], [2, 8]], [[3, 8], [4, 8]]]) == [[4, 16], [6, 16]]
    with pytest.raises(ValueError, match="positive sum"):
        score_of([[0, 0]])


def made_row(method, right, budget=0.25, score="right", seed=0, asked=8):
    pairs = [[count, asked] for count in right]
    return rows.new_row(
        method,
        budget,
        seed=seed,
        host="made",
        data="d",
        weights="w",
        num_keep=4,
        per_image={score: pairs},
        cpu_seconds=0.001,
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row["scores"]["right"].update(value=0.99),
        lambda row: row["scores"]["right"].update(interval=[0.9, 1.0]),
        lambda row: row["per_image"]["right"][0].__setitem__(0, 8),
        lambda row: row.update(cpu_seconds=0.0001),
        lambda row: row["versions"].update(torch="9"),
    ],
)
def test_an_altered_row_is_refused(tmp_path, change):
    row = made_row("divprune", [3, 5, 6])
    rows.put("answers", row, tmp_path)
    assert rows.read("answers", tmp_path) == [row]
    change(row)
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"the row of divprune at 0\.25"):
        rows.read("answers", tmp_path)


def test_a_row_takes_the_place_of_its_key(tmp_path):
    rows.put("answers", made_row("divprune", [3, 5, 6]), tmp_path)
    rows.put("answers", made_row("divprune", [1, 1, 1], seed=1), tmp_path)
    better = made_row("divprune", [4, 5, 6])
    rows.put("answers", better, tmp_path)
    assert len(rows.read("answers", tmp_path)) == 2
    assert better in rows.read("answers", tmp_path)
    path = tmp_path / "answers.jsonl"
    path.write_text(path.read_text() + json.dumps(better) + "\n")
    with pytest.raises(ValueError, match="two rows of one"):
        rows.read("answers", tmp_path)


class SlowBoard:
    """A board that takes its time, so that it can be killed."""

    data, weights = "d", "w"

    def __init__(self, seconds):
        self.seconds = seconds

    def refusal(self, name):
        return "for a test" if name == "refused" else None

    def row(self, name, budget):
        time.sleep(self.seconds)
        return made_row(name, [3, 5], budget, score="trees", seed=None)


def test_measuring_goes_on_after_it_was_killed(tmp_path):
    names = ["one", "refused", "two"]
    process = multiprocessing.get_context("fork").Process(
        target=run.measure, args=("features", SlowBoard(0.2), names, tmp_path)
    )
    process.start()
    while len(rows.read("features", tmp_path)) < 2:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -9
    before = rows.read("features", tmp_path)
    assert 2 <= len(before) < 9
    assert run.measure("features", SlowBoard(0), names, tmp_path) == 9 - len(before)
    after = rows.read("features", tmp_path)
    assert {(row["method"], row["budget"]) for row in after} == {
        *((name, budget) for name in ("one", "two") for budget in rows.BUDGETS),
        ("refused", None),
    }
    assert run.measure("features", SlowBoard(0), names, tmp_path) == 0
    other = SlowBoard(0)
    other.weights = "of another tower"
    assert run.measure("features", other, ["one"], tmp_path) == len(rows.BUDGETS)


# -- boards ---------------------------------------------------------------------------------------


@pytest.fixture
def features_board():
    torch.manual_seed(0)
    made = kept.FeaturesBoard(side=SIDE)
    image = Image.new("RGB", (40, 40))
    vars(made).update(
        tiles=[Tile(image, "tree", ((0, 0, 10, 10), (30, 30, 40, 40)))] * 2
        + [Tile(image, "building", ((20, 20, 40, 40),))],
        tokens=VisionTokens(torch.randn(3, 16, 8), (SIDE, SIDE), attention=torch.rand(3, 16)),
        weights="w",
    )
    return made


def test_objects_and_error_of_features(features_board):
    row = features_board.row("fastervlm", 0.25)
    order = features_board.tokens.attention.argsort(1, descending=True)[:, :4].tolist()
    trees = [[(0 in best) + (15 in best), 2] for best in order[:2]]
    assert row["per_image"]["trees"] == trees
    assert row["per_image"]["buildings"] == [[int(bool({10, 11, 14, 15} & {*order[2]})), 1]]
    features = features_board.tokens.features[0]
    distances = (features[:, None] - features[order[0]]).square().sum(2).amin(1)
    spread = (features - features.mean(0)).square().sum()
    assert row["per_image"]["error"][0] == pytest.approx(
        [float(distances.sum()), float(spread)], rel=1e-4
    )
    assert row["per_image"]["labeled_error"][0][0] == pytest.approx(
        float(distances[[0, 15]].sum()), rel=1e-4
    )
    blind = features_board.row("blind", 0.25)["scores"]
    assert blind["error"]["value"] == 1
    assert blind["trees"]["value"] == 0
    assert "trees" not in features_board.row("spatial_pool", 0.25)["scores"]


def test_features_refuse_by_name(features_board):
    for name in ("fastv", "cdpruner", "evs", "background_anchored", "globalcom2", SMALLER):
        row = features_board.row(name, None)
        assert row["refused"]
        assert not row["scores"]
    with pytest.raises(ValueError, match="must have a budget"):
        features_board.row("divprune", None)


def test_replayed_methods_are_those_of_the_real_tower(board):
    pixels = tower.pixels_of([made.image for made in board.composites], SIDE)
    questions = [made.questions[0].text for made in board.composites]
    inputs = host.prompts(questions, range(IMAGES), SIDE**2)
    real = host.build_host(SIDE, 0)
    real.model.vision_tower = random_tower(SIDE)
    measured = 0
    for name in tokenprune.list_methods():
        if board.refusal(name) is not None:
            continue
        measured += 1
        with torch.inference_mode():
            with tokenprune.apply(board.host, board.method(name, 4), num_keep=4):
                replayed = board.host(**inputs).logits
            with tokenprune.apply(real, name, num_keep=4):
                expected = real(**inputs | {"pixel_values": pixels}).logits
        torch.testing.assert_close(
            replayed, expected, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert measured >= 20


def test_rows_of_answers(board):
    whole = board.row("all tokens", None)
    assert whole["num_keep"] == SIDE**2
    assert [asked for _, asked in whole["per_image"]["right"]] == [composite.PER_IMAGE] * IMAGES
    counted = dict.fromkeys(composite.KINDS, 0)
    for made in board.composites:
        for question in made.questions:
            counted[question.kind] += 1
    rights = board.right("all tokens", SIDE**2)
    assert sum(map(sum, rights)) == sum(right for right, _ in whole["per_image"]["right"])
    assert whole["kinds"].keys() == counted.keys()
    for name in ("blind", "majority answer"):
        assert board.row(name, None)["num_keep"] == 0
    assert board.row("divprune", 0.25)["num_keep"] == 4
    assert board.row(SMALLER, 0.5)["num_keep"] == 4  # two by two within eight
    assert "weights" in board.row("background_anchored", None)["refused"]


def test_the_majority_answers_without_a_model():
    asked = [
        composite.Question("is there a red circle ?", word, "presence") for word in ("no", "no")
    ]
    asked.append(composite.Question("is there a teal circle ?", "yes", "presence"))
    answer = majority(asked)
    assert answer("is there a teal circle ?") == "yes"
    assert answer("is there a blue circle ?") == "no"
    assert places_of(4, 2).tolist() == [5, 7, 13, 15]


def test_training_resumes_to_the_same_weights(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(train_host, "CHECKPOINT", 2)
    features = torch.randn(32, SIDE**2, WIDTH)

    def train(folder, progress=lambda step, loss: None):
        return train_host.train_host(
            1, folder, steps=4, side=SIDE, features=lambda: features, progress=progress
        )

    whole = train(tmp_path / "whole")

    def stop(step, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stop)
    resumed = train(tmp_path / "parts")
    assert tower.weights_hash(resumed) == tower.weights_hash(whole)
    assert tower.weights_hash(host.build_host(SIDE, 1)) != tower.weights_hash(whole)


def test_a_recording_is_read_again(tmp_path):
    tokens = VisionTokens(
        torch.randn(2, 16, 8),
        (SIDE, SIDE),
        cls=torch.randn(2, 8),
        hidden_states={-2: torch.randn(2, 16, 8)},
    )
    for _ in range(2):
        again = recorded.recorded(tmp_path / "made.safetensors", SIDE, lambda: tokens)
        assert again.tensors().keys() == tokens.tensors().keys()
        for name, value in again.tensors().items():
            assert torch.equal(value, tokens.tensors()[name])
    one = recorded.chosen(again, torch.tensor([1]))
    assert torch.equal(one.hidden_states[-2], tokens.hidden_states[-2][1:])


# -- page -----------------------------------------------------------------------------------------


def test_a_claim_stands_only_where_intervals_are_apart(tmp_path):
    control = made_row("uniform", [4, 4, 5, 3] * 10)
    rows.put("answers", control, tmp_path)
    rows.put("answers", made_row("divprune", [4, 4, 5, 4] * 10), tmp_path)  # better, not apart
    rows.put("answers", made_row("tome", [7, 7, 8, 7] * 10), tmp_path)
    text = page.page(tmp_path)
    assert (
        f"is uniform with {page.cell(control, 'right')}; `tome` beats it, it beats no method."
        in text
    )
    rows.put("answers", made_row("tome", [4, 4, 4, 5] * 10), tmp_path)
    assert "no method beats it, it beats no method." in page.page(tmp_path)
    assert re.search(r"board of answers at 0\.5, 0\.25, 0\.1, 0\.05: .*`dart`", page.page(tmp_path))


def test_seeds_are_pooled_by_image(tmp_path):
    rows.put("answers", made_row("tome", [8, 0]), tmp_path)
    rows.put("answers", made_row("tome", [4, 2], seed=1), tmp_path)
    [row] = page.pool_seeds(rows.read("answers", tmp_path))
    assert row["seeds"] == [0, 1]
    assert row["scores"]["right"] == score_of([[12, 16], [2, 16]])


def test_the_page_and_its_pictures_are_of_the_committed_rows():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run `make leaderboard`"
    for path in pictures.FIGURES.glob("leaderboard-*"):
        assert path.stat().st_size <= pictures.LIMIT
        if path.suffix == ".png":
            assert Image.open(path).text["rows"] == pictures.rows_hash(), "run `make leaderboard`"


def test_pictures_show_every_board(tmp_path):
    rows.put("answers", made_row("divprune", [3, 5, 6]), tmp_path)
    rows.put("features", made_row("divprune", [3, 5], score="trees", seed=None), tmp_path)
    figures = pictures.draw_scores(tmp_path)
    assert sorted(figures) == ["leaderboard-answers.png", "leaderboard-features.png"]
    labels = figures["leaderboard-answers.png"].axes[0].get_legend_handles_labels()[1]
    assert labels == ["divprune"]
