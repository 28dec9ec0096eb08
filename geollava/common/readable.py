"""Messages that stay one line and name the file, whatever names and other libraries hold."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def storable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot write, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """The text with control characters and line breaks as escapes too, for a message."""
    return "".join(
        ascii(char)[1:-1] if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in storable(text)
    )


def reason_of(error: BaseException) -> str:
    """What an error of another library says, in one line of at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = one_line(" ".join(lines))
    if not text or isinstance(error, KeyError):  # a key alone says nothing
        text = f"{type(error).__name__} {text}".strip()
    return shortened(text, 300)


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 4] + " ..."


class FileError(ValueError):
    """An error over a file's content, which names the file."""


@contextmanager
def named(file: str | Path, what: str) -> Iterator[None]:
    """Turns whatever is raised over a file's content into a `FileError`, unless it is one.

    Panics of libraries in Rust are a BaseException, and are caught too.
    """
    try:
        yield
    except (FileError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise FileError(f"{one_line(str(file))}: {what}: {reason_of(error)}") from error


@contextmanager
def quiet_panics() -> Iterator[None]:
    """Keeps what a panic prints by itself off the standard error; the error says it."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
