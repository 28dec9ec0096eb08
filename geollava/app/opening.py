"""A scene for a viewer: sent by the browser, below the server's folder, or drawn for it.

Whatever it is, `imagery.open_scene` reads it, in a process of its own and within the same limits
as on the command line. Its tiles lie in a folder of the viewer's.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from geollava import scenes
from geollava.answering.scene_list import SUFFIXES
from geollava.app.limits import Limits
from geollava.app.messages import RefusedError, public
from geollava.app.pyramid import Pyramid
from geollava.common.readable import one_line, shortened
from geollava.imagery import open_scene
from geollava.scenes.draw import draw

LISTED = 500  # files of the server's folder
NAME_LENGTH = 80
# Drawn as those that the demonstration model was trained on, of seeds that it was not.
EXAMPLE_SCALE = 1.3
EXAMPLES = {
    "drawn scene 1": (5, 1344),
    "drawn scene 2": (10, 1344),
    "drawn scene 3": (15, 2688),
    "drawn scene 4, 8K": (20, 8064),
}


@dataclass
class OpenScene:
    """A scene that a viewer looks at.

    Attributes:
        name: for people.
        path: of the image.
        folder: of what is made of it; goes with it.
        georeferenced: it has a place on the Earth.
        questions: that are known to have an answer.
        key: by which its tiles are asked for.
    """

    name: str
    path: Path
    folder: Path
    pyramid: Pyramid
    georeferenced: bool
    questions: list[str] = field(default_factory=list)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(12))


class Opener:
    """Opens scenes.

    Args:
        root: files below it may be opened by their names; None is none.
        options: of `imagery.open_scene`.
    """

    def __init__(self, limits: Limits, root: Path | None, options: dict[str, Any]) -> None:
        self.limits, self.root = limits, root.resolve() if root is not None else None
        pixels = options.get("max_pixels")
        self.options = options | {"max_pixels": limits.pixels if pixels is None else pixels}

    async def receive(self, chunks: AsyncIterator[bytes], length: str | None, folder: Path) -> Path:
        """Writes what a browser sends, into the folder.

        Raises:
            RefusedError: more than is allowed.
        """
        most = self.limits.upload_bytes
        refused = RefusedError(
            413, f"the file must have at most {most / 2**20:,.0f} MiB: the server takes no more"
        )
        if length is not None and length.isdecimal() and int(length) > most:
            raise refused
        path, count = folder / "upload", 0
        with path.open("wb") as file:
            async for chunk in chunks:
                count += len(chunk)
                if count > most:
                    raise refused
                try:
                    file.write(chunk)
                except OSError as error:
                    raise RefusedError(507, "the server's disk is full") from error
        return path

    def open(
        self,
        path: Path,
        name: str,
        folder: Path,
        going_on: Callable[[], None] = lambda: None,
        questions: list[str] | None = None,
    ) -> OpenScene:
        """Reads a file; the folder is removed by the caller where that fails.

        Raises:
            ValueError: not an image, damaged, too large; says the name, not where it lies.
        """
        try:
            with open_scene(path, **self.options) as scene:
                pyramid = Pyramid.build(scene, folder / "tiles", going_on)
                placed = scene.georeference is not None
        except (ValueError, NotImplementedError, ImportError, OSError) as error:
            names = {str(path): name, str(path.parent): "", str(folder): ""}
            raise ValueError(public(error, names)) from error
        return OpenScene(name, path, folder, pyramid, placed, questions or [])

    def example(
        self, name: str, folder: Path, going_on: Callable[[], None] = lambda: None
    ) -> OpenScene:
        """Draws a scene and opens it.

        Raises:
            ValueError: there is no such example.
        """
        if name not in EXAMPLES:
            raise ValueError(f"an example must be one of {', '.join(EXAMPLES)}, got {name}")
        seed, side = EXAMPLES[name]
        plan = scenes.plan(seed, side, EXAMPLE_SCALE)
        path = folder / "example.jpg"
        draw(plan, "procedural").save(path, quality=95, subsampling=0)
        asked = [question.text for question in plan.questions]
        return self.open(path, name, folder, going_on, asked)

    def below(self, name: str) -> Path:
        """A file of the server's folder.

        Raises:
            RefusedError: there is no such folder, or no such scene in it.
        """
        refused = RefusedError(404, f"no such scene: {shown(name)}")
        if self.root is None or not name or "\0" in name:
            raise refused
        try:
            path = (self.root / name).resolve()
            inside = path.is_relative_to(self.root) and path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long; a circle of links
            raise refused from error
        if not inside or path.suffix.lower() not in SUFFIXES:
            raise refused
        return path

    def listing(self) -> list[str]:
        """Scenes of the server's folder as paths in it; links to folders are not followed."""
        found: list[str] = []
        for folder, _, files in os.walk(self.root) if self.root is not None else ():
            for name in files:
                if Path(name).suffix.lower() in SUFFIXES and shown(name) == name:
                    found.append((Path(folder) / name).relative_to(self.root or "").as_posix())
            if len(found) > LISTED:
                break
        return sorted(found)[:LISTED]


def shown(name: str) -> str:
    """The last part of a file's name as it is said to people."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return shortened(one_line(last), NAME_LENGTH) or "scene"


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A new folder, which goes where the block fails, however it does."""
    folder = parent / secrets.token_hex(8)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
