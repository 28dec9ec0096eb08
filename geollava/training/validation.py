"""Data files -> good rows with the sizes of their images, and a report of every bad one.

Each file is parsed once, each image looked at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from geollava import imagery
from geollava.common.readable import one_line
from geollava.training.checks import answer_problems, box_problems, marks_problem
from geollava.training.rows import TrainingRow, read_json_rows

KINDS = ("form", "image", "marks", "box", "duplicate id", "answer")

Pixels = tuple[int, int]  # (width, height)
SelectCanvas = Callable[[int, int], Pixels]


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row.

    Attributes:
        file: the data file. row: its index in it, from 0. id: the row's own, "" where it has none.
        kind: one of `KINDS`.
        message: what was expected and what came.
    """

    file: str
    row: int
    id: str
    kind: str
    message: str

    def __str__(self) -> str:
        name = f" (id {self.id})" if self.id else ""
        return one_line(f"{self.file}: row {self.row}{name}: {self.message}")


@dataclass(frozen=True)
class Report:
    """What some data files hold, and what is wrong with it.

    Attributes:
        rows: good and bad.
    """

    rows: int
    problems: list[Problem]

    @property
    def bad_rows(self) -> set[tuple[str, int]]:
        """(file, row) of each row that has a problem."""
        return {(problem.file, problem.row) for problem in self.problems}

    def counts(self) -> dict[str, int]:
        found = Counter(problem.kind for problem in self.problems)
        return {kind: found[kind] for kind in KINDS}

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "bad_rows": len(self.bad_rows),
            "counts": self.counts(),
            "problems": [asdict(problem) for problem in self.problems],
        }


class CheckedRow(NamedTuple):
    """A good row, and (width, height) of each of its images."""

    row: TrainingRow
    sizes: tuple[Pixels, ...]


class ImageSizes:
    """(width, height) of image files, each looked at once.

    Args:
        decode: read all pixels, which finds files that end early; else the header alone.

    Attributes:
        known: by path, the size, or in words why the image cannot be read.
    """

    def __init__(self, *, decode: bool) -> None:
        self.decode = decode
        self.known: dict[str, Pixels | str] = {}

    def look(self, path: str) -> Pixels | str:
        try:
            with imagery.open_scene(path) as scene:
                if self.decode:
                    for _ in scene.check():
                        pass
                return scene.size
        except ValueError as error:
            return str(error)

    def add(self, paths: Iterable[str], progress: Callable[[int, int], None] | None) -> None:
        new = sorted(set(paths) - set(self.known))
        with ThreadPoolExecutor(4) as pool:
            for done, (path, found) in enumerate(zip(new, pool.map(self.look, new), strict=True)):
                self.known[path] = found
                if progress is not None:
                    progress(done + 1, len(new))


def check_files(
    files: Sequence[Path],
    image_folder: Path | None = None,
    *,
    select_canvas: SelectCanvas,
    decode: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Report, list[CheckedRow]]:
    """Looks at every row of some data files -> (report, the good rows in the files' order).

    Args:
        files: data files.
        image_folder: where relative image paths start; each file's own folder where it is None.
        select_canvas: `GeoLlavaImageProcessor.select_canvas`, for boxes.
        decode: read every pixel of every image; else headers alone.
        progress: called with (images done, images in all).

    Raises:
        ValueError: a file that is no JSON list.
    """
    problems: list[Problem] = []
    rows: list[TrainingRow] = []
    for file in files:
        folder = image_folder if image_folder is not None else file.parent
        for found in rows_of(file, folder):
            if isinstance(found, Problem):
                problems.append(found)
            else:
                rows.append(found)
    total = len(rows) + len(problems)

    select_canvas = cache(select_canvas)  # images of one data set have few sizes
    images = ImageSizes(decode=decode)
    images.add((path for row in rows for path in row.images), progress)
    first: dict[str, str] = {}
    for row in rows:
        for kind, message in problems_of(row, images, first, select_canvas):
            problems.append(Problem(row.file, row.number, row.id, kind, message))
    names = [str(file) for file in files]
    problems.sort(key=lambda problem: (names.index(problem.file), problem.row))

    report = Report(total, problems)
    bad = report.bad_rows
    good = [
        CheckedRow(row, tuple(images.known[path] for path in row.images))  # type: ignore[misc]
        for row in rows
        if (row.file, row.number) not in bad
    ]
    return report, good


def rows_of(file: Path, image_folder: Path) -> Iterator[TrainingRow | Problem]:
    """The rows of a file, and a problem for each entry that has not the form of one."""
    for number, entry in enumerate(read_json_rows(file)):
        try:
            yield TrainingRow.of(entry, file, number, image_folder)
        except ValueError as error:
            name = one_line(str(entry.get("id", ""))) if isinstance(entry, dict) else ""
            yield Problem(str(file), number, name, "form", str(error))


def problems_of(
    row: TrainingRow, images: ImageSizes, first: dict[str, str], select_canvas: SelectCanvas
) -> Iterator[tuple[str, str]]:
    """(kind, message) of what is wrong with a row that has the form of one.

    Args:
        first: where each id stands first; the row's own is added.
    """
    found = [images.known[path] for path in row.images]
    for size in found:
        if isinstance(size, str):
            yield "image", size
    if (message := marks_problem(row)) is not None:
        yield "marks", message
    known = [size for size in found if not isinstance(size, str)]
    for message in box_problems(row, known, select_canvas):
        yield "box", message
    place = f"row {row.number} of {row.file}"
    if first.setdefault(row.id, place) != place:
        yield "duplicate id", f"the id is that of {first[row.id]}"
    for message in answer_problems(row):
        yield "answer", message


def load_checked(
    files: Sequence[Path],
    image_folder: Path | None,
    *,
    on_bad_rows: str,
    select_canvas: SelectCanvas,
    decode: bool,
) -> tuple[Report, list[CheckedRow]]:
    """(report, rows), every row good and at least one.

    Args:
        on_bad_rows: "refuse" or "skip".

    Raises:
        ValueError: bad rows where they are refused, the first of them named; no row that is good.
    """
    report, rows = check_files(files, image_folder, select_canvas=select_canvas, decode=decode)
    bad = len(report.bad_rows)
    if bad and on_bad_rows == "refuse":
        more = f" (and {bad - 1} more bad rows)" if bad > 1 else ""
        raise ValueError(
            f"{report.problems[0]}{more}; `geollava validate` lists them, "
            "data.on_bad_rows: skip leaves them out"
        )
    if not rows:
        raise ValueError(f"every row of the data is bad, the first: {report.problems[0]}")
    return report, rows
