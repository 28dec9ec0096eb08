"""profile(): what is counted is true, what is refused is said, and the model is what it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image
from torch import nn

import tokenprune
from tokenprune import ProfileReport, ProfileRow, cli, get_method
from tokenprune.hosts.profiling.runs import Runs

from . import hosts
from .checkpoint import write_llava
from .hosts import HOSTS, IMAGE, TEXT, Host, cache_in
from .test_apply import ONE, THREE, traces

TIMES = ("encode", "prefill", "first_token", "step", "total")
QUICK = {"new_tokens": 3, "repeats": 3}

_built: dict[str, Host] = {}


def build(name: str) -> Host:
    """Four layers, so that tokens can leave between them."""
    if name not in _built:
        torch.manual_seed(0)
        with mock.patch.dict(hosts.TEXT, num_hidden_layers=4):
            _built[name] = HOSTS[name]()
    return _built[name]


@pytest.fixture
def llava() -> Host:
    return build("llava")


def profiled(host: Host, rows=ONE, **options) -> ProfileReport:
    return tokenprune.profile(host.model, host.inputs(rows), **{**QUICK, **options})


def prompt_cache_bytes(host: Host, inputs, method=None, keep_ratio=None) -> int:
    """Counted in the cache that one forward over the prompt fills."""
    with torch.no_grad():
        if method is None:
            cache = cache_in(host.model(**inputs, use_cache=True))
        else:
            with tokenprune.apply(host.model, method, keep_ratio=keep_ratio):
                cache = cache_in(host.model(**inputs, use_cache=True))
    return sum(
        part.numel() * part.element_size()
        for layer in cache.layers
        for part in (layer.keys, layer.values)
    )


# -- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTS)
def test_every_host(name):
    host = build(name)
    inputs = host.inputs(THREE)  # unequal lengths, one row without image, padded on the left
    before = traces(host.model)
    methods, ratios = ["divprune", "fastervlm", "fastv"], [1.0, 0.25]
    report = profiled(host, THREE, methods=methods, keep_ratios=ratios)
    assert traces(host.model) == before
    assert (report.prompts, report.columns) == tuple(inputs["input_ids"].shape)
    assert report.tokens == int((inputs["input_ids"] == IMAGE).sum())
    assert [(row.method, row.keep_ratio) for row in report.rows] == [
        ("whole", None),
        *((method, ratio) for method in methods for ratio in ratios),
    ]
    assert [row.refused for row in report.rows] == [None] * len(report.rows)
    for row in report.rows:
        assert all(getattr(row, time).p50 > 0 for time in TIMES), row
        assert row.peak_memory_bytes is None  # not measured here
        given = () if row.method == "whole" else (row.method, row.keep_ratio)
        assert row.kv_cache_bytes == prompt_cache_bytes(host, inputs, *given)
    assert [row.tokens for row in report.rows if row.keep_ratio in (None, 1)] == [report.tokens] * 4
    counts = {row.tokens for row in report.rows if row.keep_ratio == 0.25}
    assert len(counts) == 1
    assert counts.pop() < 0.4 * report.tokens


def test_counts_by_hand(llava):
    """Two images of 16 tokens, in four layers of two key-value heads of 8 floats."""
    report = profiled(llava, methods=["divprune"], keep_ratios=[0.25])
    whole, reduced = report.rows
    assert (whole.tokens, reduced.tokens) == (32, 8)
    per_column = 4 * 2 * TEXT["num_key_value_heads"] * 8 * 4
    assert whole.kv_cache_bytes == report.columns * per_column
    assert reduced.kv_cache_bytes == (report.columns - 24) * per_column


def test_parts_add_up(llava):
    """With the clock in our hands: each look at it is a second later."""
    with mock.patch("time.perf_counter", side_effect=map(float, range(1_000_000))):
        report = profiled(llava, methods=["fastervlm", "fastv"], keep_ratios=[0.5])
    for row in report.rows:
        reduce = row.reduce.p50 if row.reduce else 0
        assert row.encode.p50 + reduce + row.prefill.p50 == row.first_token.p50
        assert row.first_token.p50 + 2 * row.step.p50 == pytest.approx(row.total.p50)
        # Two looks at the clock, and four more on the way, a second of each pair taken off: reading
        # attention, and bringing it to tokens.
        assert row.encode.p50 == (3 if row.method == "fastervlm" else 1)
    assert report.whole.reduce is None
    assert all(row.reduce.p50 > 0 for row in report.rows[1:])


def test_repeats_that_disagree_show_no_difference(llava):
    """The whole model takes 2 s, the reduced one 1 s; in another profile sometimes 4 s."""
    plain = Runs.run

    def taking(seconds):
        seconds = iter(seconds)

        def run(self, case):
            found = plain(self, case)
            return dataclasses.replace(found, total=next(seconds))

        return mock.patch.object(Runs, "run", run)

    one = {"methods": ["random"], "keep_ratios": [0.5]}
    with taking([9, 9, 2, 1, 2, 1, 2, 1]):
        report = profiled(llava, **one)
    assert report.rows[1].speedup.p50 == 2
    assert report.rows[1].shown is True
    assert "no difference shown" not in str(report)
    with taking([9, 9, 2, 1, 2, 4, 2, 1]):
        report = profiled(llava, **one)
    assert report.rows[1].speedup.p50 == 2
    assert report.rows[1].shown is False
    assert "2.00 (1.10 to 2.00), no difference shown" in str(report)


def test_every_run_says_as_many_tokens(llava):
    """Also a model that would end at once."""
    eos = llava.model.generation_config.eos_token_id
    tokens = llava.model.generate(**llava.inputs(ONE), max_new_tokens=1)
    lengths = []
    plain = llava.model.generate

    def generate(**given):
        output = plain(**given)
        lengths.append(output.shape[1] - given["input_ids"].shape[1])
        return output

    llava.model.generation_config.eos_token_id = int(tokens[0, -1])
    try:
        with mock.patch.dict(llava.model.__dict__, {"generate": generate}):
            profiled(llava, methods=["random"], keep_ratios=[0.25], new_tokens=5)
    finally:
        llava.model.generation_config.eos_token_id = eos
    assert lengths == [5] * (2 + 2 * 3)


def test_as_text_and_as_a_dict(llava):
    report = profiled(llava, methods=["divprune", get_method("random")], keep_ratios=[0.5])
    lines = str(report).splitlines()
    assert lines[0].startswith("LlavaForConditionalGeneration (llava), float32, sdpa, on cpu with ")
    assert f"torch {torch.__version__}, transformers " in lines[1]
    assert lines[2] == f"32 visual tokens, {report.columns} columns, 3 new tokens"
    assert lines[5].split()[:3] == ["method", "keep", "tokens"]
    assert [line.split()[:3] for line in lines[6:9]] == [
        ["whole", "-", "32"],
        ["divprune", "0.5", "16"],
        ["Random", "0.5", "16"],
    ]
    assert lines[-1] == "peak memory: not measured on a CPU"
    assert max(map(len, lines)) < 140
    found = json.loads(json.dumps(report.as_dict()))
    assert found["repeats"] == 3
    assert [row["tokens"] for row in found["rows"]] == [32, 16, 16]
    assert set(found["rows"][0]) == set(ProfileRow.__dataclass_fields__)


# -- what is refused ------------------------------------------------------------------------------


def test_a_method_that_is_refused_is_a_row(llava):
    late = get_method("fastv", layer=9)
    before = traces(llava.model)
    report = profiled(llava, methods=[late, "random"], keep_ratios=[0.5, 0.25])
    assert traces(llava.model) == before
    refused = report.rows[1:3]
    assert all("layer must lie below the 4 layers" in row.refused for row in refused)
    assert all(row.tokens is row.total is row.speedup is None for row in refused)
    assert [row.tokens for row in report.rows[3:]] == [16, 8]
    assert "FastV was refused at 0.5, 0.25: ValueError: layer must lie" in str(report)


def test_where_all_is_refused_the_whole_model_remains(llava):
    report = profiled(llava, methods=[get_method("fastv", layer=9)], keep_ratios=[0.5])
    assert report.whole.total.p50 > 0
    assert report.rows[1].refused


def test_a_method_that_fails_midway_leaves_nothing(llava):
    before = traces(llava.model)
    method = get_method("divprune")
    with mock.patch.object(type(method), "_reduce", side_effect=RuntimeError("out of luck")):
        report = profiled(llava, methods=[method], keep_ratios=[0.5])
    assert report.rows[1].refused == "RuntimeError: out of luck"
    assert traces(llava.model) == before


def test_what_cannot_be_is_refused(llava):
    inputs = llava.inputs(ONE)
    text = {"input_ids": torch.tensor([[5, 6, 7]])}
    for arguments, error, message in (
        ({"inputs": text}, ValueError, r"must hold an image, got no placeholder \(id 100\)"),
        ({"inputs": 3}, TypeError, "a mapping, got int"),
        ({"methods": ["best"]}, ValueError, "method must be one of"),
        ({"methods": [3]}, TypeError, "must be names or Methods, got int"),
        ({"methods": "divprune"}, TypeError, "methods must be a list, got str"),
        ({"methods": []}, ValueError, "methods must hold at least one, got none"),
        ({"keep_ratios": [1.5]}, ValueError, r"keep_ratio must be in \(0, 1\], got 1.5"),
        ({"keep_ratios": 0.5}, TypeError, "keep_ratios must be a list, got float"),
        ({"new_tokens": 1}, ValueError, "new_tokens must be at least 2, got 1"),
        ({"repeats": 2}, ValueError, "repeats must be at least 3, got 2"),
        ({"model": nn.Linear(2, 2)}, NotImplementedError, "no adapter for Linear"),
        (
            {"model": llava.model.model},
            TypeError,
            "must have its head, to generate, got LlavaModel",
        ),
    ):
        given = {"model": llava.model, "inputs": inputs, **arguments}
        with pytest.raises(error, match=message):
            tokenprune.profile(given.pop("model"), given.pop("inputs"), **given)
    with (
        tokenprune.apply(llava.model, "random", num_keep=3),
        pytest.raises(ValueError, match="got one with a reduction applied"),
    ):
        tokenprune.profile(llava.model, inputs)
    llava.model.train()
    try:
        with pytest.raises(ValueError, match=r"call model.eval\(\)"):
            tokenprune.profile(llava.model, inputs)
    finally:
        llava.model.eval()


def test_several_devices_are_refused():
    torch.manual_seed(0)
    host = HOSTS["llava"]()
    inputs = host.inputs(ONE)
    host.model.lm_head.to("meta")
    with pytest.raises(NotImplementedError, match=r"on one device, .* got cpu, meta"):
        tokenprune.profile(host.model, inputs)


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["profile", *map(str, arguments)])
        output = capsys.readouterr()
        return end.value.code, output.out, output.err

    return run


SHORT = ("--new-tokens", 2, "--repeats", 3)


def test_without_an_image(run, checkpoint):
    code, out, err = run(checkpoint, *SHORT)
    assert (code, err) == (0, "")
    rows = [line.split()[:3] for line in out.splitlines()[6:11]]
    assert rows == [
        ["whole", "-", "16"],
        ["divprune", "0.5", "8"],
        ["divprune", "0.25", "4"],
        ["random", "0.5", "8"],
        ["random", "0.25", "4"],
    ]
    assert out.endswith("image: noise of 672 x 672 px\n")


def test_with_an_image_as_json(run, checkpoint, tmp_path):
    path = tmp_path / "gray.png"
    Image.new("L", (80, 90), 128).save(path)
    options = ("--method", "random", "--method", "fastv", "--keep-ratio", 0.25, "--json", *SHORT)
    code, out, err = run(checkpoint, path, "--question", "What?", *options)
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["image"] == f"{path}, 80 x 90 px"
    assert [row["method"] for row in report["rows"]] == ["whole", "random", "fastv"]
    assert "layer must lie below the 2 layers" in report["rows"][2]["refused"]
    assert report["dtype"] == "float32"  # the checkpoint's


def test_dtype(run, checkpoint):
    options = ("--method", "random", "--keep-ratio", 0.25, "--dtype", "bfloat16", "--json", *SHORT)
    assert json.loads(run(checkpoint, *options)[1])["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["/nowhere/at/all"], "/nowhere/at/all"),
        (["MODEL", "missing.png"], "missing.png"),
        (["MODEL", __file__], "cannot identify image file"),
        (["MODEL", "--method", "best"], "method must be one of"),
        (["MODEL", "--method", "background_anchored"], "needs the model's weights as options"),
        (["MODEL", "--keep-ratio", "0"], "keep_ratio must be in (0, 1], got 0.0"),
        (["MODEL", "--new-tokens", "1"], "new_tokens must be at least 2, got 1"),
        (["MODEL", "--repeats", "1"], "repeats must be at least 3, got 1"),
    ],
)
def test_bad_input_is_one_line(run, checkpoint, given, message):
    code, out, err = run(*(checkpoint if word == "MODEL" else word for word in given))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert message in err
