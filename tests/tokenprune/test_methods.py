"""Every method in the folder keeps the same promises."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import tokenprune.methods
from tokenprune import (
    LayerMethod,
    ReducedTokens,
    VisionTokens,
    cli,
    get_method,
    list_methods,
    method_class,
)
from tokenprune.testing import check_method, check_result, example_tokens, tokens_for

from .cases import assert_same, fields, make_inputs

# Those that reduce tokens by themselves, to a number that is known beforehand; the others work in a
# language model's layers, or share a budget out.
ALONE = [
    name
    for name in list_methods()
    if not issubclass(method_class(name), LayerMethod) and name not in {"globalcom2"}
]
WEIGHTS = ("dw_weight", "pw_weight", "pw_bias", "q_weight", "q_bias", "k_weight", "k_bias")


def build(name, width=16):
    """A method with its defaults, and with random weights where it has weights."""
    names = {field.name for field in dataclasses.fields(method_class(name))}
    inputs = make_inputs(1, (1, 1), width, 1, seed=5)
    return get_method(name, **{weight: inputs[weight] for weight in WEIGHTS if weight in names})


def test_list():
    assert list_methods() == sorted(list_methods())
    assert {"background_anchored", "divprune", "random", "tome"} <= set(list_methods())


@pytest.mark.parametrize("name", list_methods())
def test_contract(name):
    check_method(build(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("holov", {"official": True}),
        ("holov", {"num_windows": None}),
        ("vispruner", {"compared": "features"}),
        ("cdpruner", {"text": "joint"}),
        ("scope", {"compared": "features", "alpha": 0.0}),
        ("idpruner", {"parallel_k": 4, "mmr_lambda": 1.0}),
        ("hiprune", {"alpha": 1.0}),
        ("hiprune", {"object_layer": 15, "deep_layer": -1, "official": True}),
        ("dart", {"official": True}),
        ("sparsevlm", {"official": True}),
        ("sparsevlm", {"official": True, "version": 2}),
        ("pact", {"official": True}),
    ],
)
def test_contract_with_options(name, options):
    check_method(get_method(name, **options))


@pytest.mark.parametrize("name", ALONE)
@settings(max_examples=10)
@given(
    batch=st.integers(0, 3),
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    levels=st.sampled_from([None, 1, 2]),
    data=st.data(),
)
def test_every_grid_and_budget(name, batch, rows, cols, dtype, levels, data):
    """Also where tokens repeat: features of one or two levels leave little to choose by."""
    layers = method_class(name).tower_layers.get("hidden_states", ())
    tokens = example_tokens(batch, (rows, cols), dtype=dtype, seed=rows, hidden_layers=layers)
    if levels is not None:
        coarse = (tokens.features * levels).round().clamp(0, levels)
        tokens = replace(tokens, features=coarse, attention=coarse.float().mean(2))
    num_keep = data.draw(st.integers(1, rows * cols))
    result = build(name).reduce(tokens, num_keep)
    check_result(result, tokens, num_keep)
    assert result.features.isfinite().all()


@pytest.mark.parametrize("name", ALONE)
def test_declarations(name):
    """What a method says it needs is enough, and a pruned token is untouched unless it merges."""
    method = build(name)
    tokens = example_tokens(hidden_layers=method.tower_layers.get("hidden_states", ()))
    if name == "hiprune":  # with its defaults so small a budget has no anchors, whose grid matters
        method = get_method(name, alpha=1.0)
    given = {field: getattr(tokens, field) for field in method.needs}
    result = method.reduce(VisionTokens(tokens.features, (6, 5), **given), 7)
    untouched = tokens.features.gather(1, result.keep_indices[:, :, None].expand(-1, -1, 16))
    assert torch.equal(result.features, untouched) is not method.merges
    other_text = method.reduce(replace(tokens, text=tokens.text.flip(2)), 7)
    same = torch.equal(other_text.keep_indices, method.reduce(tokens, 7).keep_indices)
    assert same is method.query_agnostic
    grid, row = method.reduce(tokens, 7), method.reduce(replace(tokens, grid_size=(1, 30)), 7)
    same = [
        torch.equal(getattr(grid, one), getattr(row, one)) for one in ("keep_indices", "assignment")
    ]
    assert all(same) is not method.uses_grid


@pytest.mark.parametrize("name", ALONE)
def test_bad_budgets_and_tokens(name):
    method = build(name)
    for num_keep, error in ((0, ValueError), (31, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="num_keep must be"):
            method.reduce(example_tokens(), num_keep)
    with pytest.raises(TypeError, match="must be VisionTokens, got Tensor"):
        method.reduce(torch.zeros(1, 4, 8), 2)
    broken = tokens_for(method, 16)
    broken.features[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="features must be finite, got NaN or infinity in 1 of 3"):
        method.reduce(broken, 5)


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match=r"one of background_anchored, .*, vispruner, got 'best'"):
        get_method("best")
    options = "strict, num_keep, keep_ratio, seed"
    with pytest.raises(ValueError, match=f"random takes the options {options}, got temperature"):
        get_method("random", temperature=1)


@pytest.mark.parametrize("name", [n for n in ALONE if build(n).needs])
def test_what_a_method_needs(name):
    tokens = VisionTokens(torch.zeros(1, 4, 8), (2, 2))
    method = build(name)
    with pytest.raises(ValueError, match=rf"needs VisionTokens.{method.needs[0]}, got .* = None"):
        method.reduce(tokens, 2)


def test_a_method_from_another_package(tmp_path, monkeypatch):
    (tmp_path / "far_away.py").write_text(
        "from tokenprune.methods.random import Random\n"
        "class FarAway(Random):\n"
        "    pass\n"
        "not_a_method = 3\n"
    )
    info = tmp_path / "far_away-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far-away\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tokenprune.methods]\nfar_away = far_away:FarAway\nbroken = far_away:not_a_method\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match="'broken', plugged into tokenprune.methods .* TypeError"):
        assert "far_away" in list_methods()
    assert get_method("far_away").reduce(example_tokens(), 4).features.shape == (3, 4, 16)
    check_method(get_method("far_away"))
    with pytest.raises(TypeError, match="must name a subclass of Method, got far_away:not_a_meth"):
        get_method("broken")


def test_a_method_that_cannot_be_imported_is_none(tmp_path, monkeypatch, recwarn):
    info = tmp_path / "absent-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: absent\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tokenprune.methods]\nnever_there = no_such_module:Absent\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "never_there" not in list_methods()
    assert "never_there" not in list_methods()
    assert "never_there" not in cli.text_table()
    (warning,) = (w for w in recwarn if "never_there" in str(w.message))  # once
    assert "No module named 'no_such_module'" in str(warning.message)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        get_method("never_there")


def test_weights_that_are_missing_are_named():
    with pytest.raises(ValueError, match="background_anchored needs the model's weights") as error:
        get_method("background_anchored", dw_weight=torch.zeros(16, 1, 3, 3))
    assert str(error.value).endswith(": pw_weight, pw_bias, q_weight, q_bias, k_weight, k_bias")


def test_random_depends_on_its_seed_alone():
    tokens = example_tokens()
    first = get_method("random", seed=1).reduce(tokens, 7)
    other = get_method("random", seed=2).reduce(tokens, 7)
    assert not torch.equal(first.keep_indices, other.keep_indices)
    assert torch.equal(
        first.features, tokens.features.gather(1, first.keep_indices[:, :, None].expand(-1, -1, 16))
    )
    state = torch.get_rng_state()
    get_method("random").reduce(tokens, 7)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are drawn


@pytest.mark.parametrize("grid_size", [(6, 5), (1, 7), (7, 1), (4, 4), (3, 8)])
def test_spatial_pool_partitions_the_grid_for_every_budget(grid_size):
    rows, cols = grid_size
    tokens = example_tokens(1, grid_size)
    for num_keep in range(1, rows * cols + 1):
        result = get_method("spatial_pool").reduce(tokens, num_keep)
        windows = result.assignment[0].view(rows, cols)
        assert len(windows.unique()) == num_keep
        for root in windows.unique().tolist():
            inside = (windows == root).nonzero()
            (top, left), (bottom, right) = inside.min(0).values, inside.max(0).values
            assert len(inside) == (bottom - top + 1) * (right - left + 1)  # a rectangle
            assert root == top * cols + left


@pytest.mark.parametrize(("num_keep", "window"), [(16, (6, 6)), (24, (6, 4)), (144, (2, 2))])
def test_spatial_pool_is_average_pooling_where_it_divides(num_keep, window):
    tokens = example_tokens(2, (24, 24))
    result = get_method("spatial_pool").reduce(tokens, num_keep)
    grid = tokens.features.mT.unflatten(2, (24, 24))
    pooled = functional.avg_pool2d(grid, window).flatten(2).mT
    transposed = functional.avg_pool2d(grid, window[::-1]).flatten(2).mT
    assert any(
        torch.allclose(result.features, expected, atol=1e-6) for expected in (pooled, transposed)
    )


def test_cat_and_counts():
    tokens = example_tokens(5)
    method = build("background_anchored")
    whole = method.reduce(tokens, 7)
    halves = [
        method.reduce(VisionTokens(tokens.features[part], (6, 5), tokens.cls[part]), 7)
        for part in (slice(0, 2), slice(2, 5))
    ]
    joined = ReducedTokens.cat(halves)
    assert_same(joined, whole)
    assert joined.grid_size == (6, 5)
    assert ReducedTokens.cat(halves[:1]) is halves[0]


def test_a_method_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "first_tokens.py").write_text(
        "from dataclasses import dataclass\n"
        "from tokenprune.method import Method\n"
        "from tokenprune.selection import best, select_tokens\n"
        "@dataclass(kw_only=True)\n"
        "class FirstTokens(Method):\n"
        "    'Keeps the first tokens.'\n"
        "    def _reduce(self, tokens, num_keep):\n"
        "        scores = tokens.features.new_zeros(tokens.features.shape[:2])\n"
        "        return select_tokens(tokens, best(scores, num_keep), scores)\n"
    )
    monkeypatch.setattr(
        tokenprune.methods, "__path__", [*tokenprune.methods.__path__, str(tmp_path)]
    )
    assert "first_tokens" in list_methods()
    check_method(build("first_tokens"))
    row = ("first_tokens", "keeps the first tokens", "-", "yes", "-", "-", "-", "-")
    assert row in cli.method_rows()


def test_approximations_say_so_beside_their_names():
    departing = {name for name in list_methods() if method_class(name).faithful == "variant"}
    assert "cdpruner" in departing
    assert not {"divprune", "holov", "random"} & departing
    for name in list_methods():
        assert name not in departing or method_class(name).approximates, f"{name} says not in what"
        mark = " (approximation)" if name in departing else ""
        assert f"\n| `{name}`{mark} | " in cli.markdown_table()
        assert f"\n{name}{mark}  " in cli.text_table()


def test_every_method_says_to_which_code_it_is_faithful(golden):
    """A commit is one of those from which outputs are recorded."""
    recorded = (golden / "methods" / "README.md").read_text("utf-8")
    for name in list_methods():
        value = method_class(name).faithful
        if name == "background_anchored":  # recorded beside the other methods, without a commit
            assert value == "faithful to GeoLLaVA-8K as published"
            continue
        found = re.fullmatch(r"variant|control|faithful to ([\w.-]+/[\w.-]+)@([0-9a-f]{7})", value)
        assert found, f"{name}: {value}"
        repository, commit = found.groups()
        assert not repository or re.search(rf"{repository}\b.* at {commit}", recorded), value
        lines = cli.markdown_table().splitlines()
        line = next(line for line in lines if line.startswith(f"| `{name}`"))
        assert re.search(rf" \| {value}(; official=True: faithful to [^|]+)? \| ", line)


def test_the_official_form_is_told_beside_the_default():
    rows = {row[0].split(" ")[0]: row for row in cli.method_rows()}
    for name in list_methods():
        if not hasattr(method_class(name), "official"):
            assert "official" not in rows[name][5]
            continue
        official = get_method(name, official=True)
        assert official.faithful.startswith("faithful to "), name
        assert rows[name][5].endswith(official.faithful)
    told = rows["visionzip"][5]
    assert told == "variant; official=True: faithful to dvlab-research/VisionZip@3151f6d"


def test_the_table_says_what_official_makes_of_a_method(golden):
    recorded = (golden / "methods" / "README.md").read_text("utf-8")
    for name in ("dart", "sparsevlm", "pact", "pyramiddrop"):
        said = cli.faithful_of(method_class(name))
        found = re.fullmatch(
            r"variant; official=True: faithful to ([\w.-]+/[\w.-]+)@([0-9a-f]{7})", said
        )
        assert found, said
        assert re.search(rf"{found[1]}\b.* at {found[2]}", recorded), said
    assert cli.faithful_of(method_class("hiprune")) == method_class("hiprune").faithful


def test_the_table_lists_every_method(capsys):
    cli.main(["methods"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", *list_methods()]
    assert next(line for line in lines if line.startswith("tome")).split("  ")[-1] == (
        "features for keys; after the tower, not inside its layers"
    )
    cli.main(["methods", "--markdown"])
    assert capsys.readouterr().out.rstrip() == cli.markdown_table()
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2


def test_text_is_checked():
    features = torch.zeros(2, 6, 4)
    for text, error, message in (
        (
            torch.zeros(2, 4),
            ValueError,
            r"text must be \[B, T, D\] with T >= 1, got shape \[2, 4\]",
        ),
        (torch.zeros(2, 0, 4), ValueError, "T >= 1"),
        (torch.zeros(1, 3, 4), ValueError, r"\[B, T, D\] = \[2, 3, 4\], got \[1, 3, 4\]"),
        (torch.zeros(2, 3, 4).int(), TypeError, "text must be floating point"),
        ([1.0], TypeError, "text must be a tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            VisionTokens(features, (2, 3), text=text)
    patches = torch.zeros(2, 6, 5)
    for joint, error, message in (
        ({"image_embeds": patches[:, :4]}, ValueError, r"image_embeds must be \[B, N, C\]"),
        ({"image_embeds": patches.int()}, TypeError, "image_embeds must be floating point"),
        (
            {"image_embeds": patches, "text_embeds": torch.zeros(2, 1, 4)},
            ValueError,
            r"text_embeds must be \[B, T, D\] = \[2, 1, 5\], got \[2, 1, 4\]",
        ),
    ):
        with pytest.raises(error, match=message):
            VisionTokens(features, (2, 3), **joint)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vispruner", {"important_ratio": 0.0}, r"important_ratio must lie in \(0, 1\], got 0.0"),
        ("hiprune", {"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
        ("hiprune", {"object_layer": -2}, "object_layer and deep_layer must differ, got -2"),
        ("globalcom2", {"ratio": 0.0}, r"ratio must lie in \(0, 1\], got 0.0"),
        ("idpruner", {"mmr_lambda": 1.5}, r"mmr_lambda must lie in \[0, 1\], got 1.5"),
        ("idpruner", {"parallel_k": 0}, "parallel_k must be at least 1, got 0"),
        ("scope", {"alpha": -1.0}, "alpha must not be negative, got -1.0"),
        ("vispruner", {"step": 0}, "step must be at least 1, got 0"),
        ("visionzip", {"contextual_ratio": 1.0}, r"contextual_ratio must lie in \[0, 1\), got 1.0"),
        ("dart", {"num_pivots": 0}, "num_pivots must be at least 1, got 0"),
        ("dart", {"official": True, "code": "angelslim"}, "follows the authors' code, got code="),
        ("sparsevlm", {"layers": (2, 6)}, r"layers must be three that ascend .*, got \[2, 6\]"),
        ("pact", {"layer": 0}, "layer must be at least 1, got 0"),
        ("holov", {"num_windows": 0}, "num_windows must be at least 1, got 0"),
        ("fastv", {"layer": 0}, "layer must be at least 1, got 0"),
        ("pyramiddrop", {"ratio": 0.0}, r"ratio must lie in \(0, 1\], got 0.0"),
        ("pyramiddrop", {"layers": (3, 2)}, r"layers must ascend from at least 1, got \[3, 2\]"),
        ("pyramiddrop", {"layers": ()}, r"layers must ascend from at least 1, got \[\]"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_method(name, **options)


def test_globalcom2_takes_the_crops_of_one_image():
    tokens = example_tokens(5)
    with pytest.raises(ValueError, match="a thumbnail and 2 x 3 tiles, got 5 crops"):
        get_method("globalcom2", crop_grid=(2, 3)).reduce(tokens, 7)
    alone = get_method("globalcom2").reduce(tokens.crop(0), 7)
    assert alone.cu_seqlens.tolist() == [0, 7]
    assert torch.equal(alone.keep_indices, tokens.cls_logits[0].topk(7).indices.sort().values)
    whole = get_method("globalcom2", crop_grid=(2, 2)).reduce(tokens, 30)
    assert whole.cu_seqlens[1] == 30
    assert (whole.cu_seqlens.diff() <= 30).all()


def test_globalcom2_gives_more_to_the_tile_that_the_thumbnail_looks_at():
    tokens = example_tokens(5, (6, 6))
    logits = torch.zeros(5, 36)
    logits[0].view(6, 6)[3:, :3] = 2  # the third tile
    logits[1:] = torch.arange(36).flip(0)
    tokens = replace(tokens, cls_logits=logits)
    method = get_method("globalcom2", crop_grid=(2, 2))
    shares = method.shares(tokens, 12)
    weights = torch.tensor([0, 0, 1.8, 0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(shares, 12 / 36 * (1 + weights - 0.25))
    result = method.reduce(tokens, 12)
    assert result.cu_seqlens.diff().tolist() == [12, *(36 * shares + 1e-9).int().tolist()]
    assert result.keep_indices[12:16].tolist() == [0, 1, 2, 3]  # of the first tile


def test_autocast_changes_nothing():
    tokens = example_tokens(hidden_layers=range(-9, 0))
    for name in ALONE:
        plain = build(name).reduce(tokens, 7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = build(name).reduce(tokens, 7)
        for field, value in fields(plain).items():
            assert torch.equal(value, fields(cast)[field]), (name, field)
