"""Benchmark data -> rows, what is wrong with each, and their images."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, UnidentifiedImageError

from geollava.common.readable import named
from geollava.evaluate.benchmark import Benchmark, Row
from geollava.evaluate.sources import find_table, load_dataset, read_rows
from geollava.imagery import Scene, open_scene

IMAGES = ("image", "Image", "bytes")  # the column with the image: the first that there is


@dataclass(frozen=True)
class Example:
    """One row of the data.

    Attributes:
        number: its place in the data, from 0.
        row: its columns, without the image's.
        images: a name for each image: its path as the data has it, or a digest where it is
            embedded.
        problem: why the row cannot be asked, or None.
    """

    number: int
    row: Row
    images: tuple[str, ...]
    problem: str | None

    @property
    def index(self) -> Any:
        """The row's own index; its place where it has none."""
        return self.row.get("index", self.number)


class Data:
    """Rows of a benchmark. Images stay where they are until they are opened.

    Args:
        benchmark: whose rows these are; others in the data are left out.
        source: a JSON, JSONL or Parquet file, such as `test.json` of `geollava scenes`; a folder
            with one of them or written by `datasets`' `save_to_disk`; or a hub name.
        split: which part, where the source has several.
        image_folder: where image paths start; where the data lies by default.

    Attributes:
        source: as given.
        rows: of the benchmark, all columns but the image's, under this project's names.
        in_data: how many rows there are with those of other kinds.

    Raises:
        ValueError: nothing to read there, or nothing in it.
        ImportError: the library datasets is needed and missing.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        source: str,
        split: str | None = None,
        image_folder: Path | None = None,
    ) -> None:
        self.benchmark, self.source = benchmark, source
        path = find_table(Path(source), split)
        self.folder = image_folder or (path if path.is_dir() else path.parent)
        if path.suffix in (".json", ".jsonl"):
            rows = read_rows(path)
            self._images: Any = [{k: v for k, v in row.items() if k in IMAGES} for row in rows]
            texts = [{k: v for k, v in row.items() if k not in IMAGES} for row in rows]
        else:
            # As Arrow, so that nothing is decoded before it is asked for.
            dataset = load_dataset(path, source, split).with_format("arrow")
            names = dataset.column_names
            held = [name for name in names if name in IMAGES]
            # Without columns a data set has no rows.
            self._images = dataset.select_columns(held) if held else [{}] * len(dataset)
            texts = dataset.select_columns([name for name in names if name not in IMAGES])
            with named(source, "its rows must be readable"):
                table = texts[:]
                table.validate(full=True)  # what is damaged can crash those who read it
                texts = table.to_pylist()
        renamed = [benchmark.renamed(row) for row in texts]
        self.in_data = len(renamed)
        self._places = [place for place, row in enumerate(renamed) if benchmark.belongs(row)]
        self.rows = [renamed[place] for place in self._places]
        if not self.rows:
            raise ValueError(
                f"{source} must hold at least one row of {benchmark.title}, it holds none "
                f"among {self.in_data}" + (f": {benchmark.how_to}" if benchmark.how_to else "")
            )

    def cells(self, number: int) -> list[str | bytes]:
        """A path or the bytes of each image of a row."""
        cell = self._images[self._places[number]]
        cell = cell if isinstance(cell, dict) else cell.to_pylist()[0]
        name = next((name for name in IMAGES if name in cell), IMAGES[0])
        value = cell.get(name)
        found: list[str | bytes] = []
        for image in value if isinstance(value, list) else [value]:
            if isinstance(image, dict):
                image = image.get("bytes") or image.get("path")
            if not isinstance(image, (str, bytes)) or not image:
                raise ValueError("the row must have an image, it has none")
            if name == "bytes" and isinstance(image, str):
                image = base64.b64decode(image)
            found.append(image)
        if not found:
            raise ValueError("the row must have an image, it has none")
        return found

    def examples(self, *, blind: bool, limit: int | None) -> list[Example]:
        """The first `limit` rows, checked.

        Args:
            blind: images are not needed, and not looked at.
        """
        looked: dict[str, str | None] = {}
        examples = []
        for number, row in enumerate(self.rows[:limit]):
            problem, names = self.benchmark.problem_of(row), []
            try:
                cells = self.cells(number)
            except ValueError as error:
                cells, problem = [], problem or (None if blind else str(error))
            for cell in cells:
                name = cell if isinstance(cell, str) else hashlib.sha256(cell).hexdigest()
                names.append(name)
                if not blind:
                    if name not in looked:
                        looked[name] = self.image_problem(cell)
                    problem = problem or looked[name]
            examples.append(Example(number, row, tuple(names), problem))
        return examples

    def subtask_of(self, example: Example) -> str | None:
        """The row's subtask, or None if it names an unknown one."""
        try:
            return self.benchmark.subtask_of(example.row)
        except ValueError:
            return None

    def image_problem(self, cell: str | bytes) -> str | None:
        """What the header of an image says against it, or None."""
        try:
            with opened(self.folder, [cell]):
                return None
        except (ValueError, OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            return str(error)

    @contextmanager
    def open(self, example: Example | None) -> Iterator[list[Scene]]:
        """The images of a row; none for None."""
        cells = [] if example is None else self.cells(example.number)
        with opened(self.folder, cells) as scenes:
            yield scenes

    def digest(self) -> str:
        """Of every row, and of the paths of its images where they are not embedded."""
        known = hashlib.sha256()
        for place, row in zip(self._places, self.rows, strict=True):
            names = self._images[place] if isinstance(self._images, list) else None
            known.update(json.dumps([row, names], sort_keys=True, default=str).encode())
        return known.hexdigest()[:16]


@contextmanager
def opened(folder: Path, cells: list[str | bytes]) -> Iterator[list[Scene]]:
    """Scenes of images; embedded ones pass through a file, so that every reader takes them."""
    with ExitStack() as stack:
        scenes = []
        for number, cell in enumerate(cells):
            if isinstance(cell, bytes):
                place = Path(stack.enter_context(TemporaryDirectory(prefix="geollava-")))
                path = place / f"embedded-{number}"
                path.write_bytes(cell)
            else:
                path = folder / cell
            scenes.append(stack.enter_context(open_scene(path)))
        yield scenes
