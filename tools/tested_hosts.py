"""Writes which types of hosts are shown to work with the transformers that is installed.

    python tools/tested_hosts.py          # proves all, writes tokenprune/hosts/tested.json

Each type's tiny model goes through the proofs of `tests/tokenprune/families/proof.py`. Entries of
other releases stay; run it under each release of `tested_versions.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.tokenprune.families import FAMILIES, videos  # noqa: E402
from tests.tokenprune.families.proof import (  # noqa: E402
    PROOFS,
    masked_equivalence,
    second_turn,
)
from tokenprune.hosts.compat import imported  # noqa: E402
from tokenprune.hosts.listing import TYPES  # noqa: E402
from tokenprune.hosts.registry import find_adapter  # noqa: E402
from tokenprune.hosts.tested import RESULTS, number_of  # noqa: E402


def proven(name: str) -> dict[str, Any] | None:
    """What is listed of a type, or None where a proof failed."""
    torch.manual_seed(0)
    host = FAMILIES[name]()
    for what, proof in PROOFS.items():
        torch.manual_seed(0)
        try:
            proof(host)
        except Exception as error:
            text = next(iter(str(error).splitlines()), "")
            print(f"{name}: {what} fails, {type(error).__name__}: {text}")
            return None
    adapter = find_adapter(host.model)
    return {
        "adapter": type(adapter).__name__,
        "positions": "several axes" if adapter.positions_need_grid else "one axis",
        "offers": sorted(adapter.offers),
    }


def proves_videos(name: str) -> bool:
    if name not in videos.BUILD:
        return False
    for what, prompt in videos.PROMPTS.items():
        try:
            masked_equivalence(videos.with_videos(name), prompt)
            second_turn(videos.with_videos(name), prompt)
        except Exception as error:
            print(f"{name}: {what} fails, {type(error).__name__}: {error}")
            return False
    return True


def with_release(releases: list[str], release: str, passed: bool) -> list[str]:
    return sorted(({*releases} - {release}) | ({release} if passed else set()), key=number_of)


def main() -> None:
    release = str(transformers.__version__)
    written = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    hosts: dict[str, dict[str, Any]] = written.get("hosts", {})
    releases = {*written.get("transformers", []), release}
    installed = set(imported(*TYPES))
    for name in sorted(FAMILIES):
        shown = proven(name) if name in installed else None
        before = hosts.pop(name, {"video": [], "transformers": []})
        passed = with_release(before["transformers"], release, shown is not None)
        video = with_release(before["video"], release, shown is not None and proves_videos(name))
        if passed:
            hosts[name] = (shown or before) | {"video": video, "transformers": passed}
    RESULTS.write_text(
        json.dumps(
            {
                "transformers": sorted(releases, key=number_of),
                "hosts": dict(sorted(hosts.items())),
            },
            indent=2,
        )
        + "\n",
        encoding="utf-8",
    )
    number = sum(release in host["transformers"] for host in hosts.values())
    print(f"transformers {release}: {number} of {len(FAMILIES)} types")


if __name__ == "__main__":
    main()
