"""Many scenes, many questions: one row per pair, in a Parquet file.

What is finished lies in part files beside the output until all is; a run that was killed goes on
from there. One engine works in this process, the other on Ray Data over any number of machines.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import torch

from geollava.answering.finished import COLUMNS, Finished, Row, fingerprint, model_files
from geollava.answering.measures import Stopwatch
from geollava.answering.scene_list import find_scenes, read_questions
from geollava.answering.session import Seen
from geollava.answering.settings import Settings
from geollava.common.choices import Engine
from geollava.common.extras import install
from geollava.common.malloc import keep_freed_memory
from geollava.common.outputs import check_output
from geollava.common.readable import one_line, storable
from geollava.imagery import files_of
from geollava.model.checkpoint import resolve_folder

ENGINES = get_args(Engine)
SECONDS_PER_PART = 2.0  # of work that a kill can cost


@dataclass(frozen=True)
class Task:
    """A scene and what is still to be asked about it."""

    scene: str
    questions: tuple[str, ...]


class SceneAnswerer:
    """A session that turns tasks into rows. A bad scene becomes rows with its error."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.session = settings.session()

    def __call__(self, task: Task) -> list[Row]:
        once, start = Stopwatch(), time.perf_counter()
        try:
            with self.session.see(task.scene, **self.settings.of_scenes()) as seen:
                seen.encode()
                once.seconds["encode"] = time.perf_counter() - start
                return [self.row(seen, task.scene, text, once) for text in task.questions]
        except Exception as error:  # whatever is wrong with this scene, the others go on
            return [row_of(task.scene, question, error=error) for question in task.questions]

    def row(self, seen: Seen, scene: str, question: str, once: Stopwatch) -> Row:
        """One answer.

        Args:
            once: seconds of what is done once for all of the scene's questions, which count for
                each of them.
        """
        (tokens,), own = seen.encode(), Stopwatch()
        row: Row = {
            "crops": tokens.canvas.crops,
            "tokens_before": tokens.before,
            "tokens_after": tokens.after,
        }
        limit = self.settings.max_new_tokens
        try:
            answer = seen.ask(question, max_new_tokens=limit, stopwatch=own)
        except Exception as error:
            return row_of(scene, question, error=error, **row)
        if seen.keeps_prefix:  # read for the first question, or before
            once.seconds.setdefault("prefill", own.seconds.pop("prefill"))
        seconds = sum(once.seconds.values()) + sum(own.seconds.values())
        row |= {"answer": answer.text, "seconds": seconds, "tokens_after": answer.tokens_after}
        return row_of(scene, question, **row)


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
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report its use to its makers
    try:
        import ray
        import ray.data  # it sets its logger up
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


def require_arrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"geollava batch needs pyarrow: {install('batch')}") from error
