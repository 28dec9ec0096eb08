"""What `tools/tested_hosts.py` writes is what `list_hosts` and `tokenprune hosts` say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

import tokenprune
from tests.tokenprune.families import FAMILIES
from tokenprune import cli
from tokenprune.hosts import tested

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import tested_hosts  # noqa: E402


@pytest.fixture
def written(tmp_path, monkeypatch) -> Iterator[None]:
    """Results of three types, proofs left out."""
    results = tmp_path / "tested.json"
    few = {name: FAMILIES[name] for name in ("llava", "qwen2_vl", "aya_vision")}
    with (
        mock.patch.object(tested_hosts, "PROOFS", {}),
        mock.patch.object(tested_hosts, "FAMILIES", few),
        mock.patch.object(tested_hosts, "RESULTS", results),
    ):
        tested_hosts.main()
    monkeypatch.setattr(tested, "RESULTS", results)
    tested.results.cache_clear()
    yield
    tested.results.cache_clear()


@pytest.mark.usefixtures("written")
def test_what_hosts_hand_over_is_written_and_read(capsys):
    listed = {host.model_type: host for host in tokenprune.list_hosts()}
    assert {name for name, host in listed.items() if host.supported} == {
        "llava",
        "qwen2_vl",
        "aya_vision",
    }
    of_llava = ("attention", "cls", "cls_logits", "features", "hidden_states", "keys", "queries")
    of_llava = (*of_llava, "received", "roots", "single_head_attention", "text")
    assert listed["llava"].offers == of_llava
    assert listed["aya_vision"].offers == ("features", "text")
    assert listed["gemma3"].offers == ()
    assert {name for name, host in listed.items() if host.video} == {"qwen2_vl"}
    capsys.readouterr()
    cli.main(["hosts"])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert ", ".join(of_llava) in rows["llava"]
    cli.main(["hosts", "--json"])
    printed = {one["model_type"]: one for one in json.loads(capsys.readouterr().out)}
    assert printed["aya_vision"]["offers"] == ["features", "text"]
