"""How a package is built: its files, which of them import which, and how long they are.

    python tools/structure.py                                   # both packages
    python tools/structure.py geollava --against v0.1.0         # one, beside another commit's
    python tools/structure.py ANY/PACKAGE_FOLDER

Imports in functions and under TYPE_CHECKING count; imports by text, as `import_module("...")`, are
not seen. A room is an entry at a package's top level.
Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
LINES_PER_FILE, LINES_PER_CLASS = 400, 250
UNCOUNTED = {"__init__.py", "py.typed"}  # at the top level: every typed package has them

Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Package:
    """A package as text.

    Attributes:
        name: its import name.
        files: path below the package -> content; empty where it is no Python.
    """

    name: str
    files: dict[str, str]

    @classmethod
    def from_folder(cls, folder: Path) -> Package:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls(
            folder.name,
            {
                path.relative_to(folder).as_posix(): read(path.suffix, path.read_bytes())
                for path in paths
                if "__pycache__" not in path.parts
            },
        )

    @classmethod
    def from_commit(cls, folder: Path, ref: str) -> Package:
        """As a commit has it. Raises ValueError where the commit, or the folder in it, is missing.

        Args:
            folder: where the package lies, or would lie, in a checkout.
        """
        command = ["git", "-C", str(folder.parent), "archive", ref, folder.name]
        done = subprocess.run(command, capture_output=True)
        if done.returncode != 0:
            raise ValueError(f"{folder.name} at {ref}: {done.stderr.decode().strip()}")
        files = {}
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            for member in archive:
                if (content := archive.extractfile(member)) is not None:
                    path = PurePosixPath(member.name)
                    name = path.relative_to(folder.name).as_posix()
                    files[name] = read(path.suffix, content.read())
        return cls(folder.name, files)

    @cached_property
    def modules(self) -> dict[str, str]:
        """Import name -> content, of every Python file."""
        return {
            self.module_of(path): text for path, text in self.files.items() if path.endswith(".py")
        }

    def module_of(self, path: str) -> str:
        parts = (self.name, *PurePosixPath(path).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def entries(self) -> list[str]:
        """What lies at the top level, beside what every package has there."""
        return sorted({path.partition("/")[0] for path in self.files} - UNCOUNTED)

    @cached_property
    def graph(self) -> dict[str, set[str]]:
        """Module -> the modules of the package that it imports."""
        found = {}
        for path, text in self.files.items():
            if path.endswith(".py"):
                module = self.module_of(path)
                is_package = path.endswith("__init__.py")
                named = imports_of(text, module if is_package else module.rpartition(".")[0])
                found[module] = {
                    next((name for name in names if name in self.modules), module)
                    for names in named
                } - {module}
        return found

    @cached_property
    def rooms(self) -> dict[str, set[str]]:
        """Room -> the rooms that it imports from."""
        rooms: dict[str, set[str]] = {}
        for module, needed in self.graph.items():
            room = room_of(module)
            rooms.setdefault(room, set()).update({room_of(name) for name in needed} - {room})
        return rooms

    @cached_property
    def lines(self) -> dict[str, int]:
        """Path -> lines, of every Python file, the longest first."""
        lengths = {path: len(text.splitlines()) for path, text in self.files.items() if text}
        return dict(sorted(lengths.items(), key=lambda item: -item[1]))

    def long_files(self) -> list[str]:
        return [f"{path} {count}" for path, count in self.lines.items() if count > LINES_PER_FILE]

    def long_classes(self) -> list[str]:
        return [
            f"{module}.{node.name} {length}"
            for module, text in self.modules.items()
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ClassDef)
            and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > LINES_PER_CLASS
        ]


def read(suffix: str, content: bytes) -> str:
    return content.decode() if suffix == ".py" else ""


def imports_of(text: str, package: str) -> Iterator[list[str]]:
    """What a file imports from anywhere: for each import the names that it may be, best first.

    Args:
        package: the package that the file lies in, from which relative imports start.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ([alias.name] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ([f"{base}.{alias.name}", base] for alias in node.names)


def room_of(module: str) -> str:
    return ".".join(module.split(".")[1:2]) or module


def circles(graph: Graph) -> list[list[str]]:
    """Sets of modules that all import each other, by however many steps."""
    reached = {name: reachable(name, graph) for name in graph}
    found = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return [list(circle) for circle in sorted(found)]


def reachable(start: str, graph: Graph) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def arrows(graph: Graph) -> int:
    return sum(len(needed) for needed in graph.values())


def summary(package: Package) -> dict[str, str]:
    longest = next(iter(package.lines.items()), ("none", 0))
    return {
        "files": str(len(package.modules)),
        "entries at the top level": str(len(package.entries)),
        "arrows between files": str(arrows(package.graph)),
        "arrows between rooms": str(arrows(package.rooms)),
        "circles of files": str(len(circles(package.graph))),
        "circles of rooms": str(len(circles(package.rooms))),
        "lines": f"{sum(package.lines.values()):,}",
        "lines of the longest file": f"{longest[1]} {longest[0]}",
        f"files over {LINES_PER_FILE} lines": str(len(package.long_files())),
        f"classes over {LINES_PER_CLASS} lines": str(len(package.long_classes())),
    }


def report(packages: dict[str, Package]) -> str:
    """A table with a column for each, and below it what is too long or goes in circles."""
    columns = [summary(package) for package in packages.values()]
    rows = [["", *packages]] + [[key, *(one[key] for one in columns)] for key in columns[0]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    for title, package in packages.items():
        details = {
            "circle": [" - ".join(circle) for circle in circles(package.graph)],
            "circle of rooms": [" - ".join(circle) for circle in circles(package.rooms)],
            "long file": package.long_files(),
            "long class": package.long_classes(),
        }
        lines += [f"{title}: {kind}: {one}" for kind, found in details.items() for one in found]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    both = [ROOT / "tokenprune", ROOT / "geollava"]
    parser.add_argument("folders", nargs="*", type=Path, default=both, metavar="PACKAGE_FOLDER")
    parser.add_argument("--against", metavar="GIT_REF", help="show this commit's packages beside")
    options = parser.parse_args()
    try:
        for number, folder in enumerate(path.resolve() for path in options.folders):
            if not folder.is_dir():
                raise ValueError(f"a package's folder was expected, got {folder}")
            packages = {folder.name: Package.from_folder(folder)}
            if options.against:
                before = Package.from_commit(folder, options.against)
                packages = {f"{folder.name} at {options.against}": before} | packages
            print("\n" * (number > 0) + report(packages))
    except (ValueError, OSError, SyntaxError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
