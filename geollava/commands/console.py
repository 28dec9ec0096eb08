"""What the commands share: where they print, how they show progress, how they refuse an option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Results go to the standard output, everything else to the other.
stderr = Console(stderr=True, highlight=False)

DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value}")


def note(message: str) -> None:
    """One line on the standard error, whatever the terminal's width."""
    stderr.print("[yellow]note:[/]", end=" ", soft_wrap=True)
    stderr.print(message, markup=False, soft_wrap=True)


def local_path(text: str) -> Path:
    """A path of the command line; a URL is refused as it was written, with both slashes."""
    if "://" in text:
        raise typer.BadParameter(f"{text} is a URL: download it, files on this machine are read")
    return Path(text)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
