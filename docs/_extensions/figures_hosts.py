"""Figures of the hosts that are shown to work: what `tools/tested_hosts.py` has written."""

from __future__ import annotations

import json
from typing import Any

from figures import ROOT, figure


def shown() -> tuple[str, list[dict[str, Any]]]:
    """The newest tested transformers, and the types whose tests passed on it."""
    text = (ROOT / "tokenprune" / "hosts" / "tested.json").read_text(encoding="utf-8")
    read = json.loads(text)
    newest = read["transformers"][-1]
    return newest, [host for host in read["hosts"].values() if newest in host["transformers"]]


@figure
def hosts_shown() -> str:
    newest, hosts = shown()
    return f"{len(hosts)} types with transformers {newest}"


@figure
def hosts_with_videos() -> str:
    newest, hosts = shown()
    return str(sum(newest in host["video"] for host in hosts))
