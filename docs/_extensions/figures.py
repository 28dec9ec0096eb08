"""Measured figures: computed from committed rows, never typed.

A page writes {figure}`name`, the README `<!-- figure: name -->text<!-- -->`; `name` is a function
in a file `figures_*.py` beside this one. A table is such a function too: ```{measured} name```.
`python docs/_extensions/figures.py` writes what the README says anew.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ONE_THREAD, TWO_THREADS = "cpu-1-threads-x86_64", "cpu-2-threads-x86_64"
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- figure: (\w+) -->)(.*?)(<!-- -->)", re.DOTALL)

FIGURES: dict[str, Callable[[], str]] = {}
TABLES: dict[str, Callable[[], str]] = {}


def figure(function: Callable[[], str]) -> Callable[[], str]:
    """Registers a text for the role; the function's name is the figure's."""
    FIGURES[function.__name__] = function
    return function


def measured(function: Callable[[], str]) -> Callable[[], str]:
    """Registers Markdown for the directive."""
    TABLES[function.__name__] = function
    return function


# -- rows -----------------------------------------------------------------------------------------


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of `benchmarks/results/NAME.jsonl`."""
    text = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def result(name: str) -> Any:
    """What `benchmarks/results/NAME.json` holds."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def row(name: str, **wanted: Any) -> dict[str, Any]:
    """The one row with these values.

    Raises:
        ValueError: none or several rows have them.
    """
    found = [r for r in rows(name) if all(r.get(key) == value for key, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"{name}.jsonl must have one row with {wanted}, it has {len(found)}")
    return found[0]


# -- texts ----------------------------------------------------------------------------------------


def milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def seconds(value: float) -> str:
    return f"{value:,.1f} s" if value >= 1 else f"{value:.2f} s"


def mebibytes(value: float) -> str:
    return f"{value:,.0f} MiB"


def times(value: float) -> str:
    return f"{value:.0f} ×" if value >= 20 else f"{value:.1f} ×"


def percent(value: float, digits: int = 1) -> str:
    """A share in percent."""
    return f"{100 * value:.{digits}f} %"


def table(headings: Iterable[str], body: Iterable[Iterable[Any]]) -> str:
    lines = [list(headings)]
    lines.append(["---"] * len(lines[0]))
    lines += [[str(cell) for cell in cells] for cells in body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# -- registries -----------------------------------------------------------------------------------


def load() -> None:
    """Imports every `figures_*.py`, each of which registers what it computes."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    for path in sorted(HERE.glob("figures_*.py")):
        import_module(path.stem)


def text_of(registry: dict[str, Callable[[], str]], name: str) -> str:
    if name not in registry:
        raise ValueError(f"no figure is called {name!r}; there are {', '.join(sorted(registry))}")
    return registry[name]()


def filled(readme: str) -> str:
    """The README with every marked figure as the rows have it."""
    load()
    registry = sys.modules["figures"].FIGURES
    return MARKED.sub(lambda m: f"{m[1]}{text_of(registry, m[2])}{m[4]}", readme)


def setup(app: Any) -> dict[str, bool]:
    from docutils import nodes
    from sphinx.util.docutils import SphinxDirective, SphinxRole

    load()

    class Figure(SphinxRole):  # type: ignore[misc]
        def run(self) -> tuple[list[Any], list[Any]]:
            return [nodes.inline(self.text, text_of(FIGURES, self.text))], []

    class Measured(SphinxDirective):  # type: ignore[misc]
        required_arguments = 1

        def run(self) -> list[Any]:
            text = text_of(TABLES, self.arguments[0])
            return list(self.parse_text_to_nodes(text))

    app.add_role("figure", Figure())
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    sys.modules["figures"] = sys.modules["__main__"]  # one registry, whoever imports it
    sys.path.insert(0, str(ROOT))
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
