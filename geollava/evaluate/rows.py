"""Benchmark data: a file, a folder or a hub name -> rows, what is wrong with each, their images."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, UnidentifiedImageError

from geollava.common.extras import install
from geollava.common.readable import named, reason_of
from geollava.evaluate.benchmark import Benchmark, Row
from geollava.imagery import Scene, open_scene

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
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
        columns = benchmark.columns
        renamed = [{columns.get(name, name): row[name] for name in row} for row in texts]
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
        """Of a row, None where it names none that there is."""
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


def find_table(source: Path, split: str | None) -> Path:
    """The file with the rows, or the folder itself where `datasets` reads it."""
    if not source.is_dir() or any(
        (source / name).is_file() for name in ("state.json", "dataset_dict.json")
    ):
        return source
    tables = sorted(p for p in source.iterdir() if p.suffix in (".json", ".jsonl"))
    if (source / f"{split or 'test'}.json").is_file():
        return source / f"{split or 'test'}.json"
    if len(tables) == 1:
        return tables[0]
    if tables:
        raise ValueError(
            f"{source} holds {', '.join(path.name for path in tables)}: name one of them"
        )
    return source


def read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        lines = path.suffix == ".jsonl"
        rows = [json.loads(line) for line in text.splitlines() if line] if lines else None
        rows = rows if lines else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a readable JSON file: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of rows, each an object")
    with named(path, "its text must be such that UTF-8 can write it"):
        json.dumps(rows, ensure_ascii=False).encode()
    return rows


def load_dataset(path: Path, source: str, split: str | None) -> Any:
    """A folder of `save_to_disk`, Parquet, or a data set of the hub."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError(
            f"reading {source} needs the extra evaluate: {install('evaluate')}"
        ) from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the error says it
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(path))
        elif path.is_dir() or path.is_file():
            files = sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else [str(path)]
            if not files or Path(files[0]).suffix != ".parquet":
                raise ValueError("it holds neither Parquet, JSON nor a saved data set")
            found = datasets.Dataset.from_parquet(files)
        elif path.is_absolute() or not HUB_NAME.fullmatch(source):
            raise ValueError("it does not exist")
        else:
            found = datasets.load_dataset(source)
    except Exception as error:  # of the file, the hub or the network: all in one line
        reason = reason_of(error.__cause__ or error)  # datasets says of many that one occurred
        raise ValueError(f"the data {source} cannot be read: {reason}") from error
    if isinstance(found, dict):
        names = sorted(found)
        if split is None and len(names) != 1:
            raise ValueError(f"{source} has the parts {', '.join(names)}: choose one by --split")
        if split is not None and split not in found:
            raise ValueError(f"--split must be one of {', '.join(names)}, got {split}")
        return found[split or names[0]]
    return found
