"""A scene's pixels as tiles: read once, in rows, and kept on the disk at every power of two.

The readers give rows of the whole width, and a picture is decoded whole: tiles that were cut on
demand would decode it again and again. One pass makes all of them. Tiles lie raw in one file and
become JPEG when they are asked for, which takes two milliseconds.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from geollava.imagery import Scene

TILE = 256  # pixels of a side
SLOT = 3 * TILE * TILE  # bytes of a whole tile; those at the edges leave the end of theirs empty
QUALITY = 90


def level_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """(width, height) of each level, the scene's own first, down to one that is a single tile."""
    sizes = [size]
    while max(sizes[-1]) > TILE:
        width, height = sizes[-1]
        sizes.append((-(-width // 2), -(-height // 2)))
    return sizes


def tiles_of(size: tuple[int, int]) -> tuple[int, int]:
    """(columns, rows) of the tiles of a level."""
    return -(-size[0] // TILE), -(-size[1] // TILE)


@dataclass(frozen=True)
class Pyramid:
    """Tiles of a scene in a file.

    Attributes:
        path: of the file.
        size: (width, height) of the scene.
    """

    path: Path
    size: tuple[int, int]

    @classmethod
    def build(
        cls, scene: Scene, path: Path, going_on: Callable[[], None] = lambda: None
    ) -> Pyramid:
        """Reads every pixel of a scene once.

        Args:
            path: written; the caller removes it where this raises.
            going_on: called after each row of tiles; what it raises ends the reading.

        Raises:
            ValueError: a damaged file, or a disk with no room.
        """
        pyramid = cls(path, scene.size)
        needed = sum(SLOT * cols * rows for cols, rows in map(tiles_of, level_sizes(scene.size)))
        if shutil.disk_usage(path.parent).free < 2 * needed:
            raise ValueError(
                f"{needed / 2**20:,.0f} MiB for the tiles of this scene must fit twice on the "
                "server's disk, and do not"
            )
        with path.open("wb") as file:
            halves: list[Image.Image | None] = [None] * len(level_sizes(scene.size))
            height = scene.size[1]
            for row, top in enumerate(range(0, height, TILE)):
                band = scene.read_image(top, min(top + TILE, height), 1)
                pyramid._write(file, halves, 0, row, band)
                going_on()
            for level in range(len(halves)):  # what waits for a second half gets none
                if (half := halves[level]) is not None:
                    rows = tiles_of(level_sizes(scene.size)[level])[1]
                    halves[level] = None
                    pyramid._write(file, halves, level, rows - 1, half)
        return pyramid

    def _write(
        self,
        file: BinaryIO,
        halves: list[Image.Image | None],
        level: int,
        row: int,
        band: Image.Image,
    ) -> None:
        """A row of tiles of a level, and what follows from it in the levels below.

        Args:
            halves: of each level, the upper half of a row whose lower half is still to come.
        """
        for col, left in enumerate(range(0, band.width, TILE)):
            file.seek(self._place(level, col, row))
            right = min(left + TILE, band.width)
            file.write(band.crop((left, 0, right, band.height)).tobytes())
        below = level + 1
        if below == len(halves):
            return
        reduced, upper = band.reduce(2), halves[below]
        if upper is None:
            halves[below] = reduced
            return
        halves[below] = None
        joined = Image.new("RGB", (reduced.width, upper.height + reduced.height))
        joined.paste(upper, (0, 0))
        joined.paste(reduced, (0, upper.height))
        self._write(file, halves, below, row // 2, joined)

    def _place(self, level: int, col: int, row: int) -> int:
        """Where a tile begins in the file."""
        sizes = level_sizes(self.size)
        before = sum(cols * rows for cols, rows in map(tiles_of, sizes[:level]))
        return SLOT * (before + row * tiles_of(sizes[level])[0] + col)

    def tile(self, level: int, col: int, row: int) -> bytes:
        """A tile as JPEG.

        Args:
            level: 0 is the scene at its own size, each further one half of the one before.

        Raises:
            LookupError: there is no such tile, or no such file any more.
        """
        sizes = level_sizes(self.size)
        if not 0 <= level < len(sizes):
            raise LookupError(f"a level must be 0 to {len(sizes) - 1}, got {level}")
        cols, rows = tiles_of(sizes[level])
        if not (0 <= col < cols and 0 <= row < rows):
            raise LookupError(f"level {level} has {cols} x {rows} tiles, got {col}, {row}")
        width = min(TILE, sizes[level][0] - col * TILE)
        height = min(TILE, sizes[level][1] - row * TILE)
        try:
            with self.path.open("rb") as file:
                file.seek(self._place(level, col, row))
                pixels = file.read(3 * width * height)
        except FileNotFoundError as error:
            raise LookupError("the scene was closed") from error
        written = io.BytesIO()
        # Chroma at full resolution: the color of a few pixels is asked for.
        Image.frombytes("RGB", (width, height), pixels).save(
            written, "JPEG", quality=QUALITY, subsampling=0
        )
        return written.getvalue()
