"""Training data: SuperRS-VQA and HighRS-VQA files in, checked rows out.

A file is a JSON list of `{"id", "image": [paths], "conversations": [{"from", "value"}, ...]}`, with
an `<image>` mark in a human's words for each image.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from geollava import imagery
from geollava.common.extras import install
from geollava.common.readable import one_line, shortened, storable
from geollava.model.processing import IMAGE_TOKEN

ROLES = {"human": "user", "gpt": "assistant"}
KINDS = ("form", "image", "marks", "box", "duplicate id", "answer")
NUMBER = r"-?\d+(?:\.\d+)?"
# [x1, y1, x2, y2], (x1, y1, x2, y2) or (x1, y1), (x2, y2), also in double brackets.
BOX = re.compile(
    rf"[\[(<]\s*({NUMBER})\s*,\s*({NUMBER})\s*[\])>]?\s*,\s*[\[(<]?\s*({NUMBER})\s*,\s*({NUMBER})\s*[\])>]"
)
OPTION = re.compile(r"^\s*\(?([A-Z])[).:]\s*(\S.*?)\s*$", re.MULTILINE)
LETTER_AND_TEXT = re.compile(r"\(?([A-Z])(?:[).:].*)?", re.DOTALL)
LETTERS = re.compile(r"[A-Z](?:[\s,;]*[A-Z])*\.?")

Box = tuple[float, float, float, float]


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


@dataclass
class Report:
    """What a data file holds, and what is wrong with it."""

    rows: int
    problems: list[Problem]

    def counts(self) -> dict[str, int]:
        found = Counter(problem.kind for problem in self.problems)
        return {kind: found[kind] for kind in KINDS}

    def to_json(self) -> dict[str, Any]:
        bad = len({(problem.file, problem.row) for problem in self.problems})
        return {
            "rows": self.rows,
            "bad_rows": bad,
            "counts": self.counts(),
            "problems": [asdict(problem) for problem in self.problems],
        }


def read_json_rows(path: Path) -> list[Any]:
    """The list that a data file holds.

    Raises:
        ValueError: not there, not JSON (with line and column), not a list, or empty.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a readable JSON file: {error}") from error
    if not isinstance(rows, list) or not rows:
        got = "an empty list" if rows == [] else type(rows).__name__
        raise ValueError(f"{path} must hold a JSON list of rows, got {got}")
    return rows


def form_problem(row: Any) -> str | None:
    """What keeps an entry from being a row at all, or None."""
    if not isinstance(row, dict):
        return f"a row must be an object, got {type(row).__name__}"
    if not isinstance(row.get("id"), (str, int)) or isinstance(row["id"], bool):
        return f"id must be a string or a number, got {row.get('id')!r}"
    images = image_names(row)
    if not all(isinstance(name, str) and name for name in images):
        return f"image must be a list of paths, got {row.get('image')!r}"
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        return f"conversations must be a list of turns, got {turns!r}"
    for index, turn in enumerate(turns):
        place = f"conversations[{index}]"
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return f"{place} must be an object with from and value, got {turn!r}"
        expected = ("human", "gpt")[index % 2]
        if turn.get("from") != expected:
            return f"{place}.from must be {expected}, got {turn.get('from')!r}"
        if not turn["value"].strip():
            return f"{place}.value must say something, it is empty"
    if len(turns) % 2:
        return "conversations must end with an answer of gpt, got a question"
    for text in (str(row["id"]), *images, *(turn["value"] for turn in turns)):
        if text != storable(text):
            return f"a row must be text that UTF-8 can write, got {shortened(ascii(text), 100)}"
    return None


def image_names(row: dict[str, Any]) -> list[Any]:
    """`image` as a list: some rows hold one path, rows of text alone hold none."""
    images = row.get("image")
    if images is None:
        return []
    return images if isinstance(images, list) else [images]


def marks_problem(row: dict[str, Any]) -> str | None:
    images = len(row["image"])
    turns = row["conversations"]
    marks = sum(turn["value"].count(IMAGE_TOKEN) for turn in turns[::2])
    if any(IMAGE_TOKEN in turn["value"] for turn in turns[1::2]):
        return f"an answer must not hold {IMAGE_TOKEN}"
    if marks != images:
        return f"expected one {IMAGE_TOKEN} per image, got {marks} for {images} images"
    return None


def boxes_in(text: str) -> list[Box]:
    """The boxes that a text names, as they are written."""
    return [tuple(float(value) for value in match) for match in BOX.findall(text)]  # type: ignore[misc]


def box_systems(box: Box, size: tuple[int, int], canvas: tuple[int, int]) -> list[str]:
    """The coordinate systems in which a box lies inside an image of (width, height) pixels.

    Args:
        canvas: (width, height) in pixels of what the image is resized to.
    """
    (a, b, c, d), (width, height) = box, size

    def fits(x1: float, y1: float, x2: float, y2: float, right: float, bottom: float) -> bool:
        return 0 <= x1 < x2 <= right and 0 <= y1 < y2 <= bottom

    systems = {
        "pixels": fits(a, b, c, d, width, height),
        "fractions of the sides": fits(a, b, c, d, 1, 1),
        "percent of the sides": fits(a, b, c, d, 100, 100),
        "thousandths of the sides": fits(a, b, c, d, 1000, 1000),
        "pixels as y1, x1, y2, x2": fits(b, a, d, c, width, height),
        "pixels as x, y, width, height": fits(a, b, a + c, b + d, width, height),
        f"pixels of the {canvas[0]} x {canvas[1]} canvas": fits(a, b, c, d, *canvas),
    }
    return [name for name, inside in systems.items() if inside]


def box_problems(
    row: dict[str, Any],
    sizes: Sequence[tuple[int, int]],
    select_canvas: Callable[[int, int], tuple[int, int]],
) -> Iterator[str]:
    """Boxes that lie in none of the row's images when read as pixels."""
    seen = set()
    for turn in row["conversations"]:
        for box in boxes_in(turn["value"]):
            if box in seen:
                continue
            seen.add(box)
            systems = [box_systems(box, size, select_canvas(*size)) for size in sizes]
            if not systems or any("pixels" in found for found in systems):
                continue
            written = "[" + ", ".join(f"{value:g}" for value in box) + "]"
            shown = " and ".join(f"{width} x {height}" for width, height in sizes)
            others = list(dict.fromkeys(name for found in systems for name in found))
            fitting = f"it would fit as {' or '.join(others)}" if others else "it fits no system"
            yield f"the box {written} lies outside the image of {shown} pixels; {fitting}"


def options_in(question: str) -> dict[str, str]:
    """{letter: text} of the choices that a question lists, one to a line, from A on."""
    options: dict[str, str] = {}
    for letter, text in OPTION.findall(question):
        if letter != chr(ord("A") + len(options)):
            break
        options[letter] = text
    return options if len(options) > 1 else {}


def chosen_letters(answer: str) -> set[str]:
    """The letters of an answer such as "B", "(B) three", "A, C" or "AC"; none of other texts."""
    if LETTERS.fullmatch(answer):
        return set(re.findall("[A-Z]", answer))
    match = LETTER_AND_TEXT.fullmatch(answer)
    return {match.group(1)} if match else set()


def answer_problems(row: dict[str, Any]) -> Iterator[str]:
    turns = row["conversations"]
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        options = options_in(question["value"])
        text = answer["value"].strip()
        texts = {option.rstrip(".").lower() for option in options.values()}
        if not options or text.rstrip(".").lower() in texts:
            continue
        letters = chosen_letters(text)
        if not letters or not letters <= set(options):
            yield f"the answer {text[:60]!r} is not among the options {', '.join(options)}"


class ImageSizes:
    """(width, height) of image files, each looked at once.

    Args:
        decode: read all pixels, which finds files that end early; else the header alone.
    """

    def __init__(self, *, decode: bool) -> None:
        self.decode = decode
        self.known: dict[Path, tuple[int, int] | str] = {}

    def look(self, path: Path) -> tuple[int, int] | str:
        """The size, or in words why the image cannot be read."""
        try:
            with imagery.open_scene(path) as scene:
                if self.decode:
                    for _ in scene.check():
                        pass
                return scene.size
        except ValueError as error:
            return str(error)

    def add(self, paths: Iterable[Path], progress: Callable[[int, int], None] | None) -> None:
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
    select_canvas: Callable[[int, int], tuple[int, int]],
    decode: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Report, ImageSizes]:
    """Looks at every row of some data files.

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
    good: list[tuple[Path, int, dict[str, Any]]] = []
    total = 0
    for file in files:
        rows = read_json_rows(file)
        total += len(rows)
        for index, row in enumerate(rows):
            if (message := form_problem(row)) is not None:
                name = one_line(str(row.get("id", ""))) if isinstance(row, dict) else ""
                problems.append(Problem(str(file), index, name, "form", message))
            else:
                good.append((file, index, normalize(row)))

    sizes = ImageSizes(decode=decode)
    folder = partial(folder_of, image_folder=image_folder)
    sizes.add((folder(file) / name for file, _, row in good for name in row["image"]), progress)
    first: dict[str, str] = {}
    for file, index, row in good:
        note = partial(Problem, str(file), index, row["id"])
        found = [sizes.known[folder(file) / name] for name in row["image"]]
        problems += [note("image", message) for message in found if isinstance(message, str)]
        if (message := marks_problem(row)) is not None:
            problems.append(note("marks", message))
        known = [size for size in found if not isinstance(size, str)]
        problems += [note("box", text) for text in box_problems(row, known, select_canvas)]
        place = f"row {index} of {file}"
        if first.setdefault(row["id"], place) != place:
            problems.append(note("duplicate id", f"the id is that of {first[row['id']]}"))
        problems += [note("answer", text) for text in answer_problems(row)]
    names = [str(file) for file in files]
    problems.sort(key=lambda problem: (names.index(problem.file), problem.row))
    return Report(total, problems), sizes


def normalize(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the right form with the columns and types that all rows share."""
    turns = [{"from": turn["from"], "value": turn["value"]} for turn in row["conversations"]]
    return {"id": str(row["id"]), "image": image_names(row), "conversations": turns}


def folder_of(file: Path, image_folder: Path | None) -> Path:
    return image_folder if image_folder is not None else file.parent


def load_rows(
    files: Sequence[Path], image_folder: Path | None, leave_out: set[tuple[str, int]]
) -> Any:
    """Rows as a `datasets.Dataset` that is read from disk as it is used, image paths absolute.

    Args:
        leave_out: (file, row) of rows that are not wanted.
    """
    datasets = import_datasets()
    # One string, as lists would be taken for shards. It keys the cache: contents are part of it.
    sources = json.dumps(
        [
            {
                "file": str(file),
                "folder": str(folder_of(file, image_folder).resolve()),
                "leave_out": sorted(row for name, row in leave_out if name == str(file)),
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in files
        ]
    )
    turn = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.List(datasets.Value("string")),
            "conversations": datasets.List(turn),
        }
    )
    arguments = {"sources": sources}
    return datasets.Dataset.from_generator(generate_rows, features=features, gen_kwargs=arguments)


def generate_rows(sources: str) -> Iterator[dict[str, Any]]:
    for source in json.loads(sources):
        for index, row in enumerate(read_json_rows(Path(source["file"]))):
            if index not in source["leave_out"]:
                row = normalize(row)
                row["image"] = [str(Path(source["folder"]) / name) for name in row["image"]]
                yield row


def import_datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError(
            f"reading training data needs the extra train: {install('train')}"
        ) from error
    datasets.disable_progress_bars()
    return datasets


def load_checked(
    files: Sequence[Path],
    image_folder: Path | None,
    *,
    on_bad_rows: str,
    select_canvas: Callable[[int, int], tuple[int, int]],
    decode: bool,
) -> tuple[Any, list[list[tuple[int, int]]], Report]:
    """(rows, for each row its images' sizes, report) with every row good.

    Args:
        on_bad_rows: "refuse" or "skip".

    Raises:
        ValueError: bad rows where they are refused, the first of them named; no row that is good.
    """
    report, sizes = check_files(files, image_folder, select_canvas=select_canvas, decode=decode)
    bad = {(problem.file, problem.row) for problem in report.problems}
    if bad and on_bad_rows == "refuse":
        more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
        raise ValueError(
            f"{report.problems[0]}{more}; `geollava validate` lists them, "
            "data.on_bad_rows: skip leaves them out"
        )
    if len(bad) == report.rows:
        raise ValueError(f"every row of the data is bad, the first: {report.problems[0]}")
    rows = load_rows(files, image_folder, bad)
    resolved = {path.resolve(): size for path, size in sizes.known.items()}
    known = [[resolved[Path(name).resolve()] for name in images] for images in rows["image"]]
    return rows, known, report  # type: ignore[return-value]
