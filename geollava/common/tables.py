"""Tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table; an empty name heads a column without one."""
    return [
        "|" + "".join(f" {cell(name)} |" if name else " |" for name in header),
        "|" + "---|" * len(header),
        *("| " + " | ".join(map(cell, row)) + " |" for row in rows),
    ]


def property_table(properties: Mapping[str, Any]) -> list[str]:
    """The lines of a table of names and values, without a header."""
    return table(("", ""), properties.items())


def cell(value: Any) -> str:
    """A value on one line of a table: a text as it is, anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\r", "\\r").replace("\n", "\\n")
