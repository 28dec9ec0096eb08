"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from geollava.common.system import OPEN_FILES_MOVE, lock


def check_output(path: Path, what: str, suffixes: Sequence[str]) -> None:
    """Raises ValueError if such a file cannot be written there; asked before the work, not after.

    Args:
        what: names the file in the message, such as "the overlay".
        suffixes: that its name may end in.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{what} must end in {', '.join(suffixes)}, got {path.name}")
    if not path.parent.is_dir():
        raise ValueError(f"{what}'s folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{what} {path} cannot be written")


def write_text(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place when the block ends without error."""

    def make(prefix: str) -> str:
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        return name

    with temporary(path.parent, path.stem, path.suffix, make) as partial:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its place when the block ends without error.

    Raises:
        ValueError: the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} must be new or empty, it holds files")
    folder.parent.mkdir(parents=True, exist_ok=True)

    def make(prefix: str) -> str:
        return tempfile.mkdtemp(prefix=prefix, dir=folder.parent)

    with temporary(folder.parent, folder.name, "", make) as partial:
        yield partial
        partial.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)


@contextmanager
def temporary(folder: Path, stem: str, suffix: str, make: Callable[[str], str]) -> Iterator[Path]:
    """A file or folder that this process has locked, gone at the end unless it was renamed.

    On Windows it is not locked, since no open file can be renamed there, and what a killed process
    leaves stays.

    Args:
        make: prefix -> the name of what it makes in `folder`.
    """
    if OPEN_FILES_MOVE:
        remove_leftovers(folder, stem, suffix)
        partial, handle = locked(make, f".{stem}-")
    else:
        partial, handle = Path(make(f".{stem}-")), None
    try:
        yield partial
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def locked(make: Callable[[str], str], prefix: str) -> tuple[Path, int]:
    """What `make` makes, and the descriptor that holds its lock."""
    while True:
        partial = Path(make(prefix))
        with suppress(FileNotFoundError):  # another process took it for a leftover
            handle = opened(partial)
            if still_ours(handle, partial):
                return partial, handle
            os.close(handle)


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)


def still_ours(handle: int, path: Path) -> bool:
    """Locks a temporary file for as long as its process lives, and says if it is still there."""
    with suppress(OSError):  # a file system without locks: leftovers stay there
        lock(handle, wait=True)
    return path.exists()


def remove_leftovers(folder: Path, stem: str, suffix: str) -> None:
    """Removes the temporary files of killed processes. Those of living ones are locked."""
    # As `tempfile` names them.
    leftover = re.compile(rf"\.{re.escape(stem)}-[a-z0-9_]{{8}}{re.escape(suffix)}")
    for path in folder.iterdir():
        if not leftover.fullmatch(path.name) or path.is_symlink():
            continue
        with suppress(OSError):
            handle = opened(path)
            try:
                lock(handle)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(handle)
