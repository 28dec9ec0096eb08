"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
