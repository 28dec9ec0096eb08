"""Those who look: each with a key of its own, its scene and its files, which go with it."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from geollava.app.limits import Limits
from geollava.app.messages import RefusedError
from geollava.app.opening import OpenScene
from geollava.app.side import Side


@dataclass
class Viewer:
    """One browser.

    Attributes:
        key: by which its cookie is known.
        token: that its page sends with what changes anything.
        folder: of its files.
        scene: that it looks at.
        sides: "a" and "b", what is kept of the scene by one method and by another.
        working: held while a request of it is at work.
        used: when it last asked for anything.
    """

    key: str
    token: str
    folder: Path
    scene: OpenScene | None = None
    sides: dict[str, Side] = field(default_factory=dict)
    working: asyncio.Lock = field(default_factory=asyncio.Lock)
    used: float = field(default_factory=time.monotonic)

    def check_free(self) -> None:
        """Raises RefusedError while a request is at work."""
        if self.working.locked():
            raise RefusedError(409, "the request before is still at work")

    def the_scene(self) -> OpenScene:
        """Raises RefusedError where there is none."""
        if self.scene is None:
            raise RefusedError(409, "open a scene first")
        return self.scene

    def side(self, name: str) -> Side:
        """Raises RefusedError where nothing is seen on that side."""
        if name not in self.sides or self.sides[name].conversation is None:
            raise RefusedError(409, "see the scene first")
        return self.sides[name]

    def close_scene(self) -> None:
        """Lets go of the scene and removes its files."""
        for side in self.sides.values():
            side.close()
        self.sides.clear()
        if self.scene is not None:
            shutil.rmtree(self.scene.folder, ignore_errors=True)
            self.scene = None


class Viewers:
    """All of them, up to a number.

    Args:
        folder: that theirs lie in; it is there, and is removed by whoever made it.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self._viewers: dict[str, Viewer] = {}

    def __len__(self) -> int:
        return len(self._viewers)

    def find(self, key: str) -> Viewer | None:
        """The viewer with that key, which is now the one that asked last."""
        viewer = self._viewers.get(key)
        if viewer is not None:
            viewer.used = time.monotonic()
        return viewer

    def add(self) -> Viewer:
        """A new one. One without a scene goes for it, or else the one idle for the longest.

        Raises:
            RefusedError: all that there may be are at work.
        """
        if len(self) >= self.limits.viewers:
            idle = [one for one in self._viewers.values() if not one.working.locked()]
            if not idle:
                raise RefusedError(
                    503, "too many people look at scenes here: try again in a minute"
                )
            self.remove(min(idle, key=lambda one: (one.scene is not None, one.used)))
        key = secrets.token_urlsafe(32)
        viewer = Viewer(key, secrets.token_urlsafe(32), self.folder / secrets.token_hex(8))
        viewer.folder.mkdir(mode=0o700)
        self._viewers[key] = viewer
        return viewer

    def remove(self, viewer: Viewer) -> None:
        """Ends a viewer; its files go too."""
        self._viewers.pop(viewer.key, None)
        viewer.close_scene()
        shutil.rmtree(viewer.folder, ignore_errors=True)

    def remove_idle(self) -> None:
        """Ends those that asked for nothing for too long."""
        oldest = time.monotonic() - self.limits.idle_seconds
        for viewer in list(self._viewers.values()):
            if viewer.used < oldest and not viewer.working.locked():
                self.remove(viewer)

    def close(self) -> None:
        """Ends all."""
        for viewer in list(self._viewers.values()):
            self.remove(viewer)
