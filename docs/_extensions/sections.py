"""Docstrings of methods and operators as Markdown: what their pages are made of.

Beside Google's sections these have a few of their own, which hold Markdown: formulas between dollar
signs, lists, a fenced example.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

OWN = ("Formula", "Cost", "Backward", "Fails when", "Faithful", "Example")
GOOGLE = ("Args", "Attributes", "Returns", "Raises")
HEADER = re.compile(rf"^({'|'.join((*OWN, *GOOGLE))}):$")


@dataclass(frozen=True)
class Docstring:
    """A docstring in parts.

    Attributes:
        summary: its first line, a sentence.
        text: what follows up to the first section.
        sections: by their names, as they are written.
    """

    summary: str
    text: str
    sections: dict[str, str]

    @classmethod
    def of(cls, documented: Any) -> Docstring:
        lines = (inspect.getdoc(documented) or "").splitlines()
        parts: dict[str, list[str]] = {"": []}
        name = ""
        for line in lines:
            if match := HEADER.match(line):
                name = match[1]
                parts[name] = []
            else:
                parts[name].append(line)
        head, _, text = inspect.cleandoc("\n".join(parts.pop(""))).partition("\n\n")
        sections = {
            name: inspect.cleandoc("\n".join(["", *body])).strip() for name, body in parts.items()
        }
        return cls(head.replace("\n", " "), text.strip(), sections)

    def entries(self, *names: str) -> dict[str, str]:
        """What a section of Google's says of each name: "a, b: text" says it of both."""
        found: dict[str, str] = {}
        for section in names:
            heads: list[str] = []
            for line in self.sections.get(section, "").splitlines():
                match = re.match(r"([\w, ]+): (.*)", line)
                if match and not line.startswith(" "):
                    heads = [head.strip() for head in match[1].split(",")]
                    found |= dict.fromkeys(heads, match[2])
                else:
                    for head in heads:
                        found[head] += f" {line.strip()}"
        return found


def without_own_sections(lines: list[str]) -> list[str]:
    """A docstring's lines as autodoc may have them: reStructuredText knows no dollar signs."""
    kept, skipping = [], False
    for line in lines:
        if match := HEADER.match(line):
            skipping = match[1] in OWN
        elif line and not line.startswith(" "):
            skipping = False
        if not skipping:
            kept.append(line)
    return kept


def table(headings: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
