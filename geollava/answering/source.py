"""Images as they are given to a session, opened when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geollava.answering.finished import fingerprint
from geollava.imagery import Scene, as_scene, files_of, open_scene


class Source:
    """An image as it was given, and how its file is opened. It must stay as it was."""

    def __init__(self, image: Any, options: dict[str, Any]) -> None:
        self.image, self.options = image, options
        self._fingerprint: str | None = None

    @property
    def is_open(self) -> bool:
        return isinstance(self.image, Scene)

    @contextmanager
    def opened(self) -> Iterator[Scene]:
        """The scene; a file is closed again.

        Raises:
            ValueError: a file that cannot be read, or that has changed since it was first opened.
        """
        if not isinstance(self.image, (str, os.PathLike)):
            yield as_scene(self.image)
            return
        with open_scene(self.image, **self.options) as scene:
            found = fingerprint(files_of(Path(self.image)))
            if self._fingerprint not in (None, found):
                raise ValueError(f"{self.image} has changed since it was seen: see it again")
            self._fingerprint = found
            yield scene
