"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


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


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place when the block ends without error."""
    remove_leftovers(path.parent, path.stem, path.suffix)
    while True:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        if still_ours(handle, name):
            break
        os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its place when the block ends without error.

    Raises:
        ValueError: the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} must be new or empty, it holds files")
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent, folder.name, "")
    while True:
        name = tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
        handle = os.open(name, os.O_RDONLY)
        if still_ours(handle, name):
            break
        os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(handle)


def still_ours(handle: int, name: str) -> bool:
    """Locks a temporary file for as long as its process lives, and says if it is still there."""
    with suppress(OSError):  # a file system without locks: leftovers stay there
        fcntl.flock(handle, fcntl.LOCK_EX)
    return os.path.exists(name)


def remove_leftovers(folder: Path, stem: str, suffix: str) -> None:
    """Removes the temporary files of killed processes. Those of living ones are locked."""
    # As `tempfile` names them.
    leftover = re.compile(rf"\.{re.escape(stem)}-[a-z0-9_]{{8}}{re.escape(suffix)}")
    for path in folder.iterdir():
        if not leftover.fullmatch(path.name) or path.is_symlink():
            continue
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(handle)
