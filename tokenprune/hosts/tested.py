"""What the committed test results say of each type of host: `tested.json`.

`tools/tested_hosts.py` writes it, from what `tests/tokenprune/test_families.py` proves.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from tokenprune.hosts.compat import transformers_version

RESULTS = Path(__file__).with_name("tested.json")


@dataclass(frozen=True)
class Tested:
    """What was shown of a type of hosts.

    Attributes:
        adapter: the name of its class.
        positions: "one axis" or "several axes".
        video: releases of transformers on which those of videos passed, too.
        transformers: releases of it on which the tests passed.
        offers: what it hands to methods, ascending.
    """

    adapter: str
    positions: str
    video: tuple[str, ...]
    transformers: tuple[str, ...]
    offers: tuple[str, ...]


@functools.cache
def results() -> tuple[tuple[str, ...], dict[str, Tested]]:
    """(releases of transformers that were tested, oldest first; model_type -> what was shown)."""
    read = json.loads(RESULTS.read_text(encoding="utf-8"))
    hosts = {
        name: Tested(
            values["adapter"],
            values["positions"],
            tuple(values["video"]),
            tuple(values["transformers"]),
            tuple(values["offers"]),
        )
        for name, values in read["hosts"].items()
    }
    return tuple(read["transformers"]), hosts


def number_of(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:3]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


def release_for(installed: str) -> str:
    """The newest tested release that is not newer than the installed one, or the oldest."""
    releases, _ = results()
    older = [one for one in releases if number_of(one) <= number_of(installed)]
    return older[-1] if older else releases[0]


def is_tested(model_type: str) -> bool:
    """Whether the tests passed on the tested release that comes nearest to the installed one."""
    shown = results()[1].get(model_type)
    return shown is not None and release_for(transformers_version()) in shown.transformers
