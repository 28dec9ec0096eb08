"""What is installed with what, and on which versions it is tested: out of the project's own files.

```{extras}      the extras of pyproject.toml
```{versions}    the promised ranges of pyproject.toml beside what tools/tested_versions.json lists
```{moved}       old names that still work, and what takes their place
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from figures import table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
OURS = "tokenprune-vlm"


def project() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]


def extras_table() -> str:
    body = []
    for extra, requirements in project()["optional-dependencies"].items():
        included = [part for r in requirements if r.startswith(OURS) for part in extras_in(r)]
        others = [r.partition(";")[0].strip() for r in requirements if not r.startswith(OURS)]
        body.append(
            (
                f"`{extra}`",
                ", ".join(f"`{one}`" for one in included) or "-",
                ", ".join(f"`{one}`" for one in others) or "-",
            )
        )
    return table(("extra", "includes", "and brings"), body)


def extras_in(requirement: str) -> list[str]:
    found = re.search(r"\[(.*)\]", requirement)
    return found[1].split(",") if found else []


def versions_table() -> str:
    tested = json.loads((ROOT / "tools" / "tested_versions.json").read_text(encoding="utf-8"))
    pins = pinned()
    body = [("Python", project()["requires-python"], "-", "-")]
    for package, promised in {"torch": range_of("torch")}.items():
        body.append((package, promised, "-", pins.get(package, "-")))
    for package, releases in tested.items():
        body.append(
            (package, range_of(package) or "-", ", ".join(releases), pins.get(package, "-"))
        )
    return table(("package", "promised", "tested by `make test-matrix`", "in CI"), body)


def range_of(package: str) -> str:
    """What pyproject.toml asks of a package; empty where it asks for nothing."""
    everything = [
        *project()["dependencies"],
        *(r for rs in project()["optional-dependencies"].values() for r in rs),
    ]
    for requirement in everything:
        found = re.match(rf"{re.escape(package)}([<>=!~].*?)(;|$)", requirement)
        if found:
            return found[1].strip()
    return ""


def pinned() -> dict[str, str]:
    """What constraints.txt holds CI to; the first line of each package."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w-]+)==([\w.]+)", line):
            found.setdefault(match[1], match[2])
    return found


def moved_table() -> str:
    from geollava.moved import GONE, MOVED

    body = [
        (f"`geollava.{old}`", ", ".join(f"`geollava.{one}`" for one in new.split()), "works, warns")
        for old, new in sorted(MOVED.items())
    ]
    body += [(f"`geollava.{old}`", f"`{new}`", "gone") for old, new in sorted(GONE.items())]
    return table(("old name", "now", "the old one"), body)


TABLES = {"extras": extras_table, "versions": versions_table, "moved": moved_table}


def setup(app: Any) -> dict[str, bool]:
    from sphinx.util.docutils import SphinxDirective

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))

    class Table(SphinxDirective):  # type: ignore[misc]
        def run(self) -> list[Any]:
            return list(self.parse_text_to_nodes(TABLES[self.name]()))

    for name in TABLES:
        app.add_directive(name, Table)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
