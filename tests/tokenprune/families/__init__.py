"""A tiny model with random weights of each type of hosts, by model type."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from ..hosts import HOSTS, Host
from . import any_size, gemmas, grids_of_patches, indexed, one_size, recurrent

PARTS = (one_size, any_size, grids_of_patches, indexed, gemmas, recurrent)
FAMILIES: dict[str, Callable[[], Host]] = dict(HOSTS)
for part in PARTS:
    FAMILIES |= {
        name: build
        for name, build in vars(part).items()
        if inspect.isfunction(build)
        and build.__module__ == part.__name__
        and build.__annotations__ == {"return": "Host"}
    }
