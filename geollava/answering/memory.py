"""Sizes of memory, and what a session keeps of scenes: the one used longest ago goes first."""

from __future__ import annotations

import re
import weakref
from typing import Protocol

SESSION_MEMORY = "4GiB"
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_memory(text: str) -> int:
    """Bytes of "8GiB", "512 MB" or "2e9"; units are powers of 1024.

    Raises:
        ValueError: anything else, or nothing.
    """
    match = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    try:
        size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise ValueError(f"memory must be a size such as 8GiB or 512MB, got {text}")
    return size


class Kept(Protocol):
    """Something that takes memory, and can do without."""

    @property
    def nbytes(self) -> int: ...

    def release(self) -> None:
        """Gives some of its memory back; called again, the rest. It is made again when needed."""


class SceneMemory:
    """Bytes of scenes, bounded. Scenes that nobody holds any more are forgotten by themselves.

    Args:
        limit: in bytes, or as "4GiB"; "0" keeps nothing.
    """

    def __init__(self, limit: int | str) -> None:
        if isinstance(limit, str):
            limit = 0 if limit.strip() == "0" else parse_memory(limit)
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"session memory must be bytes or a size, got {limit!r}")
        if limit < 0:
            raise ValueError(f"session memory must be 0 bytes or more, got {limit}")
        self.limit = limit
        self._used: list[weakref.ref[Kept]] = []  # the newest last

    def __len__(self) -> int:
        """Scenes that take any memory."""
        return sum(scene.nbytes > 0 for scene in self._scenes())

    @property
    def nbytes(self) -> int:
        return sum(scene.nbytes for scene in self._scenes())

    def make_room(self, scene: Kept, more: int) -> bool:
        """Makes a scene the newest; older ones go until `more` bytes fit. -> Whether they do.

        What can never fit makes no other go.
        """
        others = [other for other in self._scenes() if other is not scene]
        self._used = [weakref.ref(kept) for kept in (*others, scene)]
        wanted = more if scene.nbytes + more <= self.limit else 0
        for oldest in (*others, *others):  # first what is cheap to make again
            if self.nbytes + wanted <= self.limit:
                break
            oldest.release()
        return self.nbytes + more <= self.limit

    def _scenes(self) -> list[Kept]:
        return [scene for ref in self._used if (scene := ref()) is not None]
