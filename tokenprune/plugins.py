"""Classes by name: a file in one of our folders, or an entry point of another package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any


def plugin_names(group: str) -> list[str]:
    """Names that installed packages registered in an entry point group."""
    return list(_entries(group, tuple(sys.path)))


@lru_cache(maxsize=64)
def _entries(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Entry points by name. Looking for them reads a file of every package on `sys.path`."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, entry)
    return found


def working_plugins(group: str, kind: type[Any]) -> list[str]:
    """As `plugin_names`, without those that cannot be loaded: a warning names each of them once."""
    working = []
    for name in plugin_names(group):
        try:
            load_plugin(group, name, kind)
        except Exception as error:  # whatever another package does when it is imported
            if (group, name) not in _warned:
                _warned.add((group, name))
                warnings.warn(
                    f"{name!r}, plugged into {group} by another package, cannot be loaded and is "
                    f"left out: {type(error).__name__}: {error}",
                    stacklevel=3,
                )
        else:
            working.append(name)
    return working


_warned: set[tuple[str, str]] = set()


def load_plugin(group: str, name: str, kind: type[Any], folder: str | None = None) -> type[Any]:
    """The subclass of `kind` called `name`: a file in our own folder, else plugged in.

    Args:
        group: of the entry points.
        folder: the package of our own files; None is the one named like the group.

    Raises:
        TypeError: the entry point names something that is no subclass of `kind`, or the file holds
            none or several.
    """
    folder = folder or group
    entry = _entries(group, tuple(sys.path)).get(name)
    if entry is not None and not _is_own_module(folder, name):
        return _checked(entry, kind)
    module = importlib.import_module(f"{folder}.{name}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, kind)
        and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        found = ", ".join(value.__name__ for value in own) or "none"
        raise TypeError(
            f"{module.__name__} must hold one subclass of {kind.__name__}, got {found}; "
            "each one has a file of its own"
        )
    return own[0]


def _is_own_module(folder: str, name: str) -> bool:
    return importlib.util.find_spec(f"{folder}.{name}") is not None


def _checked(entry: EntryPoint, kind: type[Any]) -> type[Any]:
    value = entry.load()
    if not (isinstance(value, type) and issubclass(value, kind)):
        raise TypeError(
            f"entry point {entry.name} in {entry.group} must name a subclass of {kind.__name__}, "
            f"got {entry.value}"
        )
    return value
