"""Which scenes and questions a batch is about: folders, tables and text files."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from geollava.answering.finished import is_output
from geollava.common.readable import named

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".jp2", ".j2k", ".vrt")
# What lies beside scenes and is expected to be none: side files of rasters, texts, tables.
COMPANIONS = (
    *(".xml", ".ovr", ".msk", ".tfw", ".jgw", ".pgw", ".j2w", ".wld", ".prj"),
    *(".json", ".geojson", ".txt", ".csv", ".md", ".yaml", ".yml", ".html"),
)


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
