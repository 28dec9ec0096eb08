"""Many scenes, many questions: one row per pair, in a Parquet file.

What is finished lies in part files beside the output until all is; a run that was killed goes on
from there. One engine works in this process, the other on Ray Data over any number of machines.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from geollava.answering.answer import ask_for, encode_scene, generate, load
from geollava.answering.finished import COLUMNS, Finished, Row, fingerprint, is_output, model_files
from geollava.common.extras import install
from geollava.common.malloc import keep_freed_memory
from geollava.common.outputs import check_output
from geollava.common.readable import named, one_line, storable
from geollava.imagery import files_of, open_scene
from geollava.model.checkpoint import resolve_folder

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".jp2", ".j2k", ".vrt")
# What lies beside scenes and is expected to be none: side files of rasters, texts, tables.
COMPANIONS = (
    *(".xml", ".ovr", ".msk", ".tfw", ".jgw", ".pgw", ".j2w", ".wld", ".prj"),
    *(".json", ".geojson", ".txt", ".csv", ".md", ".yaml", ".yml", ".html"),
)
ENGINES = ("local", "ray")
SECONDS_PER_PART = 2.0  # of work that a kill can cost


@dataclass(frozen=True)
class Settings:
    """How each scene is answered; see `geollava ask`."""

    model: str
    num_keep: int | None = None
    method: str | None = None
    max_new_tokens: int = 128
    bands: tuple[int, ...] | None = None
    resize: str = "pillow"
    exif: str = "stored"
    max_pixels: int | None = None
    memory_budget: int | None = None
    device: str = "auto"
    dtype: str = "auto"

    def of_answers(self) -> str:
        """Those that change an answer, as JSON. The model is known for each row instead."""
        elsewhere = ["model", "memory_budget", "device", "max_pixels"]
        if self.exif == "stored":  # outputs of earlier versions say nothing of it, and are such
            elsewhere.append("exif")
        return json.dumps({k: v for k, v in asdict(self).items() if k not in elsewhere})


@dataclass(frozen=True)
class Task:
    """A scene and what is still to be asked about it."""

    scene: str
    questions: tuple[str, ...]


class SceneAnswerer:
    """A loaded model that turns tasks into rows. A bad scene becomes rows with its error."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model, self.processor = load(
            settings.model, settings.num_keep, settings.device, settings.dtype, settings.method
        )
        self.processor.image_processor.resize = settings.resize

    def __call__(self, task: Task) -> list[Row]:
        settings, start = self.settings, time.perf_counter()
        try:
            with open_scene(
                task.scene,
                bands=settings.bands,
                max_pixels=settings.max_pixels,
                exif=settings.exif,
            ) as scene:
                tokens = encode_scene(
                    self.model, self.processor, scene, memory_budget=settings.memory_budget
                )
        except Exception as error:  # whatever is wrong with this scene, the others go on
            return [row_of(task.scene, question, error=error) for question in task.questions]
        encoding = time.perf_counter() - start

        rows = []
        for question in task.questions:
            start = time.perf_counter()
            row: Row = {
                "crops": tokens.crops,
                "tokens_before": tokens.kept.assignment.numel(),
                "tokens_after": tokens.kept.keep_indices.numel(),
            }
            try:
                limit = settings.max_new_tokens
                inputs = ask_for(self.model, self.processor, question, tokens.crops, limit)
                row["answer"] = generate(self.model, self.processor, tokens, inputs, limit)
            except Exception as error:
                rows.append(row_of(task.scene, question, error=error, **row))
            else:
                row["seconds"] = encoding + time.perf_counter() - start
                rows.append(row_of(task.scene, question, **row))
        return rows


def row_of(scene: str, question: str, error: Exception | None = None, **values: Any) -> Row:
    message = None
    if error is not None:
        lines = str(error).replace(scene, one_line(scene)).strip().splitlines()
        message = one_line(lines[0]) if lines else type(error).__name__
    row: Row = dict.fromkeys(COLUMNS)
    return row | {"scene": storable(scene), "question": question, "error": message} | values


def run_batch(
    scenes: Path,
    questions: Path,
    out: Path,
    settings: Settings,
    *,
    engine: str = "local",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Answers every question about every scene, and writes the rows in that order.

    Args:
        scenes: a CSV or Parquet file with a column `image` or `scene` of paths, which count from
            where the file lies; or a folder, with those below it. There a file is a scene by its
            suffix (`SUFFIXES`); companions of scenes (`COMPANIONS`), hidden files and outputs of
            `geollava batch` are left out, and every other file is a row with an error.
        questions: a text file with a question on each line.
        out: the Parquet file to write. Its rows, and those of part files beside it, stay. One is
            answered anew where it has an error, or where a file of its scene (a VRT's sources, and
            overviews and masks beside a raster, too) or of the model is another in size or time
            than when it was answered.
        engine: "local", in this process, or "ray", on Ray Data.
        workers: of the engine "ray": models at a time. None is one per GPU, or one.
        progress: called with (scenes done, scenes in all).

    Returns:
        (rows, rows with an error) of the output.

    Raises:
        ValueError: nothing to read, an output of other settings, or one that another run writes.
        ImportError: pyarrow or ray is missing.
    """
    require_arrow()
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine}")
    check_output(out, "the output", (".parquet",))
    finished = Finished(out, settings.of_answers())
    found = find_scenes(scenes, (out, questions))
    paths, asked = list(found), read_questions(questions)
    with finished.locked():
        model = model_files(resolve_folder(settings.model))
        prints = {path: fingerprint([*files_of(Path(path)), *model]) for path in paths}
        held = finished.rows()

        def is_finished(path: str, question: str) -> bool:
            row = held.get((storable(path), question))
            return row is not None and row["error"] is None and row["fingerprint"] == prints[path]

        tasks = [
            Task(path, unanswered)
            for path in paths
            if (unanswered := tuple(q for q in asked if not is_finished(path, q)))
        ]
        done = len(paths) - len(tasks)
        if progress is not None:
            progress(done, len(paths))
        refused = [task for task in tasks if found[task.scene] is not None]
        opened = [task for task in tasks if found[task.scene] is None]
        results: Iterable[list[Row]] = ()
        if opened and engine == "ray":
            results = on_ray(opened, settings, workers)
        elif opened:
            results = here(opened, settings)
        errors = ([row_of(t.scene, q, found[t.scene]) for q in t.questions] for t in refused)
        known = {storable(path): value for path, value in prints.items()}
        with PartWriter(finished) as write:
            for rows in chain(errors, results):
                for row in rows:
                    row |= {"model": settings.model, "fingerprint": known[row["scene"]]}
                write(rows)
                done += 1
                if progress is not None:
                    progress(done, len(paths))
        ordered = finished.finish([(storable(path), q) for path in paths for q in asked])
    return len(ordered), sum(row["error"] is not None for row in ordered)


def here(tasks: list[Task], settings: Settings) -> Iterator[list[Row]]:
    answerer = SceneAnswerer(settings)
    for task in tasks:
        yield answerer(task)


def on_ray(tasks: list[Task], settings: Settings, workers: int | None) -> Iterator[list[Row]]:
    """Rows of each task, in the order in which they are finished."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ImportError(f"the engine ray needs Ray Data: {install('ray')}") from error

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # progress is ours to show
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if settings.device != "cpu" else 0
        workers = workers or max(1, gpus)
        threads = max(1, int(resources["CPU"]) // workers)
        dataset = ray.data.from_items(
            [{"scene": task.scene, "questions": json.dumps(task.questions)} for task in tasks],
            override_num_blocks=len(tasks),
        ).map(
            RayAnswerer,  # type: ignore[arg-type]
            fn_constructor_args=(settings, threads),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=0 if gpus else 1,
            num_gpus=min(1.0, gpus / workers),
        )
        for row in dataset.iter_rows():
            yield json.loads(row["rows"])
    finally:
        if started:
            ray.shutdown()


class RayAnswerer:
    """`SceneAnswerer` for rows of a Ray dataset. Rows pass as JSON, so that blocks of nothing but
    answers and blocks of nothing but errors are of one type."""

    def __init__(self, settings: Settings, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self.answerer = SceneAnswerer(settings)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        task = Task(row["scene"], tuple(json.loads(row["questions"])))
        return {"rows": json.dumps(self.answerer(task))}


class PartWriter:
    """Collects rows for a moment, so that a part file holds more than one scene."""

    def __init__(self, finished: Finished) -> None:
        self.finished, self.waiting, self.since = finished, list[Row](), time.monotonic()

    def __enter__(self) -> Callable[[list[Row]], None]:
        return self.add

    def add(self, rows: list[Row]) -> None:
        self.waiting += rows
        if time.monotonic() - self.since >= SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            name = f"part-{time.time_ns()}-{os.getpid()}.parquet"
            self.finished.write(self.waiting, self.finished.folder / name)
        self.waiting, self.since = [], time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.flush()


def read_scenes(source: Path) -> list[str]:
    """Paths of all scenes that a folder holds or a table names, each once, in order."""
    return [path for path, problem in find_scenes(source).items() if problem is None]


def find_scenes(source: Path, own: Collection[Path] = ()) -> dict[str, ValueError | None]:
    """Paths in order -> None for a scene, or why another file of a folder is none.

    Args:
        source: see `run_batch`.
        own: the run's own files, which are left out.
    """
    found: dict[str, ValueError | None]
    if source.is_dir():
        root, ours = source.resolve(), {path.resolve() for path in own}
        found = {
            str(path): problem_of(path)
            for path in sorted(source.rglob("*"))
            if root / path.relative_to(source) not in ours and not is_left_out(path, source)
        }
    elif not source.is_file():
        raise ValueError(
            f"scenes must be a folder, a CSV or a Parquet file, {source} does not exist"
        )
    else:
        found = {
            name if "://" in name else str(source.parent / name): None
            for name in scene_column(source)
        }
    if not found:
        raise ValueError(f"{source} must name at least one scene, it names none")
    return found


def is_left_out(path: Path, folder: Path) -> bool:
    """Whether a path below the folder is neither a scene nor something that should be one."""
    if os.path.isdir(path):  # its files come by themselves, unless nobody looks into it
        return not path.is_symlink() and os.access(path, os.R_OK | os.X_OK)
    suffix, parts = path.suffix.lower(), path.relative_to(folder).parts
    return suffix not in SUFFIXES and (
        suffix in COMPANIONS
        or any(part.startswith(".") or part.endswith(".parts") for part in parts)
        or is_output(path)
    )


def problem_of(path: Path) -> ValueError | None:
    """Why a path of a folder is no scene; None where it may be one."""
    if os.path.isdir(path):
        what = "is a link, which is not followed" if path.is_symlink() else "cannot be read"
        return ValueError(f"{path} holds scenes that are not asked about: the folder {what}")
    if path.suffix.lower() in SUFFIXES:
        return None
    return ValueError(
        f"{path} must be an image that geollava reads ({', '.join(SUFFIXES)}), its name says it "
        "is not"
    )


def scene_column(source: Path) -> list[str]:
    if source.suffix.lower() == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            table = parquet.read_table(source)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{source} must be a Parquet file, it cannot be read") from error
        columns = {name.lower(): name for name in table.column_names}
        with named(source, "its rows must be readable"):
            table.validate(full=True)  # what is damaged can crash those who read it
            rows: list[dict[str, Any]] = table.to_pylist()
    else:
        with (
            named(source, "it must be a CSV file in UTF-8"),
            source.open(newline="", encoding="utf-8-sig") as file,
        ):
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = {name.lower(): name for name in reader.fieldnames or []}
    column = columns.get("image", columns.get("scene"))
    if column is None:
        raise ValueError(
            f"{source} must have a column image or scene, got {', '.join(columns) or 'none'}"
        )
    return [str(row[column]) for row in rows if row[column]]


def read_questions(path: Path) -> list[str]:
    """The lines of a file that say something, each once, in order."""
    if not path.is_file():
        raise ValueError(f"questions must be a text file, {path} does not exist")
    with named(path, "it must be a text file in UTF-8"):
        text = path.read_text(encoding="utf-8-sig")
    lines = (line.strip() for line in text.splitlines())
    questions = list(dict.fromkeys(line for line in lines if line))
    if not questions:
        raise ValueError(f"{path} must hold a question on each line, it holds none")
    return questions


def require_arrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"geollava batch needs pyarrow: {install('batch')}") from error
