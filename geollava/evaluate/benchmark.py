"""What a benchmark is: how a row becomes a prompt, and a reply becomes credit."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from geollava.evaluate import benchmarks

Row = Mapping[str, Any]

PLUGINS = "geollava.benchmarks"  # an entry point group


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, called `BENCHMARK` in a file of its own in `benchmarks/`.

    The file's name is the benchmark's, with _ for -. Other packages add theirs by an entry point in
    the group `geollava.benchmarks`, name = "package.module:BENCHMARK".

    Attributes:
        name: as on the command line. title: as people call it.
        subtasks: all of them; a macro score is the mean over these. None: those that occur.
        build_prompt: row -> the question in full, without the image.
        subtask_of: row -> one of `subtasks`.
        read_reply: (row, reply) -> what was understood of it, as JSON.
        grade: (row, reply) -> credit from 0 to 1.
        chance: row -> credit expected of a blind guess.
        max_new_tokens: length limit of a reply in the public evaluation.
        published: model -> published figure in percent. published_figure: what that figure is.
        columns: the data's own names of columns -> those that this project has for them all.
        belongs: whether a row of the data is one of this benchmark.
        how_to: how rows of this benchmark are come by; said where the data holds none.
        more: (rows, replies, credit of each) -> other scores, from 0 to 1.

    `build_prompt`, `subtask_of` and `grade` raise ValueError for a row they cannot take.
    """

    name: str
    title: str
    build_prompt: Callable[[Row], str]
    subtask_of: Callable[[Row], str]
    read_reply: Callable[[Row, str], Any]
    grade: Callable[[Row, str], float]
    chance: Callable[[Row], float]
    max_new_tokens: int
    subtasks: tuple[str, ...] | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    published_figure: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    belongs: Callable[[Row], bool] = lambda row: True
    how_to: str = ""
    more: Callable[[Sequence[Row], Sequence[str], Sequence[float]], dict[str, float]] | None = None

    def renamed(self, row: Row) -> dict[str, Any]:
        """A row of the data under this project's names of columns."""
        return {self.columns.get(name, name): value for name, value in row.items()}

    def problem_of(self, row: Row) -> str | None:
        """Why this row cannot be asked or graded, and how one is come by that can; or None."""
        try:
            self.build_prompt(row)
            self.subtask_of(row)
            self.grade(row, "")
            self.chance(row)
        except (ValueError, TypeError) as error:
            return f"{error}; {self.how_to}" if self.how_to else str(error)
        return None


def list_benchmarks() -> list[str]:
    """Names of the benchmarks, ascending: files of `benchmarks/`, and plug-ins. Imports none."""
    return sorted({*own_modules(), *(entry.name for entry in entry_points(group=PLUGINS))})


def own_modules() -> dict[str, str]:
    """Name -> module of the benchmarks in `benchmarks/`."""
    return {
        module.name.replace("_", "-"): f"{benchmarks.__name__}.{module.name}"
        for module in pkgutil.iter_modules(benchmarks.__path__)
    }


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: no such benchmark; the message lists the known ones.
        TypeError: what has the name is no `Benchmark`.
        Exception: what importing another package's benchmark raises.
    """
    known = list_benchmarks()
    if name not in known:
        raise ValueError(f"the benchmark must be one of {', '.join(known)}, got {name!r}")
    module = own_modules().get(name)
    if module is not None:
        found = import_module(module).BENCHMARK
    else:
        (entry, *_) = entry_points(group=PLUGINS, name=name)
        module, found = entry.value, entry.load()
    if not isinstance(found, Benchmark):
        raise TypeError(f"{module} must hold a Benchmark called {name}, got {found!r}")
    return found


def get_field(row: Row, name: str) -> Any:
    """A column of a row; ValueError where it is missing or empty."""
    if row.get(name) is None:
        raise ValueError(f"row {row.get('index', '?')} must have {name!r}, it has {sorted(row)}")
    return row[name]


def options_of(row: Row) -> list[str]:
    """The choices of a row, such as "(A) 3 ships"."""
    options = get_field(row, "multi-choice options")
    texts = isinstance(options, list) and all(isinstance(option, str) for option in options)
    if not texts or not options:
        raise ValueError(
            f"row {row.get('index', '?')}: 'multi-choice options' must be a list of one or more "
            f"texts, got {options!r}"
        )
    return options
