"""A budget on a method, configurations in files, and other libraries' words."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenprune
from tokenprune import ReductionConfig, get_method
from tokenprune.methods.divprune import DivPrune
from tokenprune.methods.fastervlm import FasterVLM
from tokenprune.methods.tome import ToMe
from tokenprune.testing import example_tokens

from .hosts import HOSTS, Host

torch.manual_seed(0)
LLAVA = HOSTS["llava"]()


@pytest.fixture(scope="module")
def host() -> Host:
    return LLAVA


def kept(handle: Any) -> list[int]:
    return handle.report().tokens_after


# -- a budget on a method ------------------------------------------------------------------------


def test_a_method_is_applied_by_calling_it(host):
    inputs = host.inputs([[4, 0, 5]])
    with tokenprune.apply(host.model, "divprune", keep_ratio=0.25):
        expected = host.model(**inputs).logits
    with DivPrune(keep_ratio=0.25)(host.model) as handle:
        assert torch.equal(host.model(**inputs).logits, expected)
        assert kept(handle) == [4]
    method = DivPrune(num_keep=3)
    with method(host.model, positions="compact") as handle:
        host.model(**inputs)
        assert kept(handle) == [3]
    with tokenprune.apply(host.model, method) as handle:
        host.model(**inputs)
        assert kept(handle) == [3]
    chain = tokenprune.Chain(FasterVLM(), ToMe(), budgets=[0.5], num_keep=2)
    with chain(host.model) as handle:
        host.model(**inputs)
        assert kept(handle) == [2]


def test_a_budget_is_given_once(host):
    for budget in ({"num_keep": 3}, {"keep_ratio": 0.5}):
        with pytest.raises(ValueError, match=r"must be given once, got .* beside the method's"):
            tokenprune.apply(host.model, DivPrune(keep_ratio=0.25), **budget)
        with pytest.raises(ValueError, match="must be given once"):
            tokenprune.apply(host.model, ReductionConfig("divprune", num_keep=3), **budget)
    with pytest.raises(ValueError, match="exactly one of num_keep and keep_ratio"):
        DivPrune()(host.model)
    with pytest.raises(ValueError, match="exactly one of num_keep and keep_ratio"):
        DivPrune(num_keep=1, keep_ratio=0.5)(host.model)
    with pytest.raises(ValueError, match=r"keep_ratio must be in \(0, 1\], got 2"):
        DivPrune(keep_ratio=2)(host.model)


def test_others_give_their_own_budget(host):
    tokens = example_tokens(1, (3, 4), 8)
    assert DivPrune(keep_ratio=0.1).reduce(tokens, 5).keep_indices.shape[1] == 5
    report = tokenprune.verify(host.model, host.inputs([[4, 0, 5]]), method=DivPrune(num_keep=2))
    assert report.ok
    assert report.tokens_after == 8


def test_a_method_with_a_budget_is_copied_and_pickled():
    method = FasterVLM(keep_ratio=0.25)
    for same in (copy.copy(method), copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert same == method
        assert same.keep_ratio == 0.25


# -- configurations --------------------------------------------------------------------------------

BUDGETS = st.one_of(
    st.builds(lambda value: {"num_keep": value}, st.integers(1, 10_000)),
    st.builds(lambda value: {"keep_ratio": value}, st.floats(1e-6, 1)),
)


@given(
    method=st.sampled_from(["divprune", "random", "tome", "fastv", "holov", "visionzip"]),
    budget=BUDGETS,
    positions=st.sampled_from(["original", "compact"]),
    strict=st.booleans(),
)
def test_a_configuration_goes_through_a_folder(tmp_path_factory, method, budget, positions, strict):
    folder = tmp_path_factory.mktemp("config")
    options = {} if strict else {"strict": False}
    config = ReductionConfig(method, options, positions=positions, **budget)
    path = config.save_pretrained(folder)
    assert path == folder / "reduction_config.json"
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    assert ReductionConfig.from_pretrained(folder) == config
    assert ReductionConfig.from_pretrained(str(folder)).build() == config.build()
    assert json.loads(path.read_text())["schema_version"] == 1
    assert ReductionConfig.of(config.build(), positions=positions) == config


def test_a_configuration_is_applied(host):
    inputs = host.inputs([[4, 0, 5]])
    config = ReductionConfig("random", {"seed": 3}, num_keep=3, positions="compact")
    method = get_method("random", seed=3)
    with tokenprune.apply(host.model, method, num_keep=3, positions="compact"):
        expected = host.model(**inputs).logits
    with tokenprune.apply(host.model, config):
        assert torch.equal(host.model(**inputs).logits, expected)
    original = ReductionConfig("random", {"seed": 3}, num_keep=3)
    with pytest.raises(ValueError, match="positions must be those of"):
        tokenprune.apply(host.model, original, positions="compact")


def test_a_configuration_goes_through_a_hub(tmp_path):
    """The hub is a folder: what is uploaded is what is downloaded."""
    stored: dict[str, bytes] = {}
    made: list[Any] = []

    class Api:
        def __init__(self, token: Any = None) -> None:
            made.append(("token", token))

        def create_repo(self, repo_id: str, **options: Any) -> None:
            made.append((repo_id, options))

        def upload_file(self, *, path_or_fileobj: bytes, path_in_repo: str, **options: Any) -> str:
            stored[f"{options['repo_id']}/{path_in_repo}"] = path_or_fileobj
            return f"https://hub/{options['repo_id']}/{path_in_repo}"

    def download(repo_id: str, filename: str, **options: Any) -> str:
        made.append(options)
        path = tmp_path / filename
        path.write_bytes(stored[f"{repo_id}/{filename}"])
        return str(path)

    import huggingface_hub

    client = SimpleNamespace(HfApi=Api, hf_hub_download=download, errors=huggingface_hub.errors)
    config = ReductionConfig("divprune", keep_ratio=0.25)
    with mock.patch.dict(sys.modules, {"huggingface_hub": client}):
        address = config.push_to_hub("me/pruned", private=True, token="secret")
        assert address == "https://hub/me/pruned/reduction_config.json"
        assert ReductionConfig.from_pretrained("me/pruned", revision="v1") == config
    assert made == [
        ("token", "secret"),
        ("me/pruned", {"private": True, "exist_ok": True}),
        {"revision": "v1"},
    ]


def test_without_the_hub_client(tmp_path):
    config = ReductionConfig("divprune", keep_ratio=0.25)
    config.save_pretrained(tmp_path)
    with mock.patch.dict(sys.modules, {"huggingface_hub": None}):
        assert ReductionConfig.from_pretrained(tmp_path) == config
        for call in (
            lambda: config.push_to_hub("me/pruned"),
            lambda: ReductionConfig.from_pretrained("me/pruned"),
        ):
            with pytest.raises(ImportError, match=r"install tokenprune-vlm\[hf\]"):
                call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "must have schema_version 1, got 2"),
        ({"schema_version": None}, "must have schema_version 1, got None"),
        ({"method": "divprun"}, "did you mean 'divprune'"),
        ({"method": 3}, "must name its method"),
        ({"options": []}, "must hold options as an object"),
        ({"options": {"temperature": 1}}, "divprune takes the options"),
        ({"options": {"num_keep": 3}}, "the budget stands beside the options"),
        ({"retention_ratio": 0.2}, r"got retention_ratio; write keep_ratio=0\.2"),
        ({"keep_ratio": None}, "exactly one of num_keep and keep_ratio"),
        ({"keep_ratio": "0.5"}, "keep_ratio must be a number"),
        ({"positions": "new"}, "positions must be 'original' or 'compact'"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path, change, message):
    path = ReductionConfig("divprune", keep_ratio=0.25).save_pretrained(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as raised:
        ReductionConfig.from_pretrained(tmp_path)
    assert "reduction_config.json" in str(raised.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"must hold reduction_config\.json"):
        ReductionConfig.from_pretrained(tmp_path)
    path = tmp_path / "reduction_config.json"
    for text, message in (("{", "must be JSON"), ("[]", "must be an object")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            ReductionConfig.from_pretrained(tmp_path)


def test_what_no_file_can_hold():
    with pytest.raises(TypeError, match="what JSON can hold, got a Tensor for impl"):
        ReductionConfig("divprune", {"impl": torch.zeros(1)}, num_keep=3)
    chain = tokenprune.Chain(DivPrune(), num_keep=3)
    with pytest.raises(TypeError, match=r"one that list_methods\(\) names, got a Chain"):
        ReductionConfig.of(chain)


def test_a_crash_leaves_the_old_file(tmp_path):
    path = ReductionConfig("divprune", keep_ratio=0.25).save_pretrained(tmp_path)
    before = path.read_text()
    code = (
        "import os, tokenprune.config as c\n"
        "c.os.replace = lambda *args: os._exit(9)\n"
        f"c.ReductionConfig('random', num_keep=3).save_pretrained({str(tmp_path)!r})\n"
    )
    root = Path(tokenprune.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 9
    assert path.read_text() == before


# -- other libraries' words ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value", "meant"),
    [
        ("compression_ratio", 0.75, "keep_ratio=0.25 (compression_ratio is the share that leaves"),
        ("pruning_rate", 0.9, "keep_ratio=0.1 (pruning_rate is the share that leaves"),
        ("retention_ratio", 0.25, "write keep_ratio=0.25"),
        ("visual_token_num", 64, "write num_keep=64"),
        ("keepratio", 0.25, "write keep_ratio"),
        ("compression_ratio", "high", "write keep_ratio (compression_ratio"),
    ],
)
def test_other_words_are_answered(host, word, value, meant):
    with pytest.raises(TypeError) as raised:
        tokenprune.apply(host.model, "divprune", **{word: value})
    assert f"apply takes no {word}; " in str(raised.value)
    assert meant in str(raised.value)
    with pytest.raises(ValueError, match="divprune takes the options") as raised:
        get_method("divprune", **{word: value})
    assert meant in str(raised.value)
    if word != "keepratio":
        with pytest.raises(TypeError, match=f"DivPrune takes no {word}") as raised:
            DivPrune(**{word: value})
        assert meant in str(raised.value)


def test_a_word_that_means_nothing_here(host):
    with pytest.raises(TypeError, match=r"apply takes no zebra$"):
        tokenprune.apply(host.model, "divprune", zebra=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'zebra'"):
        DivPrune(zebra=1)
    with pytest.raises(ValueError, match=r"got 'zebra'$"):
        get_method("zebra")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("DivPrune", "divprune"), ("vision-zip", "visionzip"), ("fastvlm", "fastervlm")],
)
def test_a_misspelled_method(name, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        get_method(name)
