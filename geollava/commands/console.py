"""What the commands share: where they print, and how they show progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from geollava.common.readable import storable

# Results go to the standard output, everything else to the other.
stderr = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line on the standard error, whatever the terminal's width."""
    stderr.print(message, markup=False, soft_wrap=True)


def note(message: str) -> None:
    """As `say`, of what must not be overlooked."""
    stderr.print("[yellow]note:[/]", end=" ", soft_wrap=True)
    say(message)


def complain(message: str) -> None:
    """As `say`, of what went wrong where the command goes on."""
    stderr.print("[red]error:[/]", end=" ", soft_wrap=True)
    say(storable(message))


def show_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values on the standard error, in columns; on a terminal the names are dim."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        stderr.print(name.ljust(width), style="dim", end="  ", markup=False, soft_wrap=True)
        say(value)


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines; a terminal too narrow for them wraps them, and nothing is cut off."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def progress_bar(visible: bool = True) -> Progress:
    """Bars on the standard error, while it is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=not (visible and stderr.is_terminal),
    )


@contextmanager
def progress_of(what: str, visible: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """A bar, and what is called with (done, in all) while it is shown."""
    with progress_bar(visible) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def quiet_transformers() -> None:
    """Keeps warnings of transformers to itself, and its bars for loading and saving weights."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
