"""Images as they are given to a session, opened when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geollava.answering.finished import fingerprint
from geollava.imagery import Scene, as_scene, files_of, open_scene, to_rgb


class Source:
    """An image as it was given.

    Args:
        image: a path, an open scene, or what `imagery.to_rgb` takes.
        options: of `imagery.open_scene`, for a file; None is its default.

    Attributes:
        is_file: it is opened when it is needed, and must stay as it was.
        is_open: it is a scene, which whoever gave it closes.

    Raises:
        ValueError: options for what is no file.
    """

    def __init__(self, image: Any, options: dict[str, Any]) -> None:
        self.is_file = isinstance(image, (str, os.PathLike))
        self.is_open = isinstance(image, Scene)
        if not self.is_file and (given := [name for name in options if options[name] is not None]):
            raise ValueError(
                f"{', '.join(given)}: an option of files, got {type(image).__name__} for an image"
            )
        # What is in memory may change under who looks at it: a copy does not.
        self.image: Any = image if self.is_file or self.is_open else to_rgb(image).copy()
        self.options = {name: value for name, value in options.items() if value is not None}
        self._fingerprint: str | None = None

    @contextmanager
    def opened(self) -> Iterator[Scene]:
        """The scene; a file is closed again.

        Raises:
            ValueError: a file that cannot be read, or that has changed since it was first opened.
        """
        if not self.is_file:
            yield as_scene(self.image)
            return
        with open_scene(self.image, **self.options) as scene:
            found = fingerprint(files_of(Path(self.image)))
            if self._fingerprint not in (None, found):
                raise ValueError(f"{self.image} has changed since it was seen: see it again")
            self._fingerprint = found
            yield scene
