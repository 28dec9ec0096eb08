"""The finished rows of a batch on the disk, and what each of them was answered from.

One run at a time works on an output. Its lock lies among the part files and dies with its process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from geollava.common.outputs import written_whole
from geollava.common.readable import named
from geollava.common.system import lock, remove_locked

Row = dict[str, Any]
Key = tuple[str, str]
COLUMNS = {
    "scene": "string",
    "question": "string",
    "answer": "string",  # null where there is an error
    "error": "string",  # null where there is an answer
    "crops": "int32",
    "tokens_before": "int32",
    "tokens_after": "int32",
    "seconds": "float32",  # the scene's encoding, shared by its questions, and this answer
    "model": "string",  # as it was given
    "fingerprint": "string",  # of the scene's and the model's files
}
METADATA_KEY = b"geollava"  # of the Parquet files' schema: the settings of their answers
MODEL_SUFFIXES = (".json", ".jinja", ".txt", ".safetensors")


def fingerprint(files: list[Path]) -> str:
    """Sixteen characters that change with the name, size or time of one of the files.

    Contents are not read: scenes and weights can have many gigabytes.
    """
    known = hashlib.sha256()
    for path in files:
        try:
            status = os.stat(path)
            described = [path.name, status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):  # a name that no file can have
            described = [path.name]
        known.update(json.dumps(described).encode())
    return known.hexdigest()[:16]


def model_files(folder: Path) -> list[Path]:
    """What a model is loaded from; other files of its folder may change."""
    found = [*folder.iterdir(), *folder.glob("vision_tower/*")]
    return sorted(path for path in found if path.suffix in MODEL_SUFFIXES)


def is_output(path: Path) -> bool:
    """Whether a file is an output of `geollava batch`, whatever its rows and its settings."""
    if path.suffix.lower() != ".parquet":
        return False
    import pyarrow
    from pyarrow import parquet

    try:
        return METADATA_KEY in (parquet.read_metadata(path).metadata or {})
    except (pyarrow.ArrowException, OSError, ValueError):  # damaged, or no Parquet
        return False


class Finished:
    """The output of earlier runs, and part files beside it that a killed run left.

    Args:
        out: the output.
        settings: of the answers; see `batch.Settings`. Those of all rows are the same.
    """

    def __init__(self, out: Path, settings: str) -> None:
        self.out, self.settings = out, settings
        self.folder = out.with_name(out.name + ".parts")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs away from the output.

        Raises:
            ValueError: another run has it.
        """
        path = self.folder / "lock"
        handle = self.open_lock(path)
        try:
            yield
        finally:
            remove_locked(path, handle)  # who opened it meanwhile finds it gone
            with suppress(OSError):  # parts of an interrupted run stay
                self.folder.rmdir()

    def open_lock(self, path: Path) -> int:
        while True:
            self.folder.mkdir(exist_ok=True)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # another run has just ended, and took the folder away
                continue
            try:
                lock(handle)
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return handle
            except BlockingIOError as error:
                os.close(handle)
                raise ValueError(
                    f"{self.out} must have one run at a time, another one is writing it"
                ) from error
            except FileNotFoundError:
                pass
            os.close(handle)

    def rows(self) -> dict[Key, Row]:
        """All rows that are there, by scene and question.

        Raises:
            ValueError: a file that was made with other settings, or is none of ours.
        """
        found: dict[Key, Row] = {}
        files = sorted(self.folder.glob("part-*.parquet"))
        for path in [self.out, *files] if self.out.exists() else files:
            found |= {(row["scene"], row["question"]): row for row in self.read(path)}
        return found

    def read(self, path: Path) -> list[Row]:
        import pyarrow
        from pyarrow import parquet

        try:
            table = parquet.read_table(path)
            settings = (table.schema.metadata or {}).get(METADATA_KEY, b"").decode()
            table.validate(full=True)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{path} must be an output of geollava batch") from error
        if settings != self.settings:
            raise ValueError(
                f"{path} holds answers with other settings ({settings or 'none'}), expected "
                f"{self.settings}: remove it or write elsewhere"
            )
        if missing := [name for name in COLUMNS if name not in table.column_names]:
            raise ValueError(
                f"{path} must be an output of geollava batch, it lacks {', '.join(missing)}"
            )
        with named(path, "it must be an output of geollava batch"):
            rows: list[Row] = table.select(list(COLUMNS)).cast(self.schema()).to_pylist()
        return rows

    def schema(self) -> Any:
        import pyarrow

        return pyarrow.schema(
            [(name, pyarrow.type_for_alias(kind)) for name, kind in COLUMNS.items()],
            metadata={METADATA_KEY: self.settings},
        )

    def write(self, rows: list[Row], path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        with written_whole(path) as partial:
            parquet.write_table(pyarrow.Table.from_pylist(rows, schema=self.schema()), partial)

    def finish(self, order: list[Key]) -> list[Row]:
        """Writes the output: the rows of `order`, then all others. The part files go after it."""
        found = self.rows()
        rows = [found.pop(key) for key in order] + list(found.values())
        self.write(rows, self.out)
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()
        return rows
