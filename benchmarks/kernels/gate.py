"""Committed rows against those of the code as it is: what is worse by more than a tenth fails."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "results" / "static"
KEY = ("triton", "architecture", "dtype", "operator", "kernel", "constants")
LESS_IS_BETTER = (
    "registers",
    "shared_bytes",
    "spilled_bytes",
    "local_memory_instructions",
    "barriers",
    "shuffles",
    "instructions",
    "bytes.features",
    "bytes.weights",
    "bytes.scratch",
    "times_features",
    "times_least",
)
MORE_IS_BETTER = ("blocks_per_sm", "load_bits", "tensor_core_instructions")
TOLERANCE = 0.1

Row = dict[str, Any]


def path_of(triton: str) -> Path:
    return FOLDER / f"triton-{triton}.jsonl"


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(rows: Iterable[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def key_of(row: Row) -> str:
    return json.dumps([row.get(name) for name in KEY], sort_keys=True)


def name_of(row: Row) -> str:
    """A row as messages name it."""
    what = row["kernel"] or "all kernels"
    return (
        f"{row['operator']}: {what} {row['constants'] or ''} {row['dtype']} {row['architecture']}"
    )


def value(row: Row, metric: str) -> float | None:
    """None where the row has none: kernels have no multiples, operators no registers."""
    found: Any = row
    for part in metric.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def worse(row: Row, committed: Row) -> list[str]:
    """What is worse than the committed row by more than a tenth, each as "metric: was -> is"."""
    found = []
    for metric in (*LESS_IS_BETTER, *MORE_IS_BETTER):
        now, before = value(row, metric), value(committed, metric)
        if now is None or before is None:
            if now != before:
                found.append(f"{metric}: {before} -> {now}")
            continue
        sign = 1 if metric in LESS_IS_BETTER else -1
        if sign * (now - before) > TOLERANCE * before:
            found.append(f"{metric}: {before:g} -> {now:g}")
    return found


def failures(rows: list[Row], committed: list[Row]) -> list[str]:
    """Why the rows may not land: those that are worse, new or gone, one line each."""
    before = {key_of(row): row for row in committed}
    found = []
    for row in rows:
        known = before.pop(key_of(row), None)
        if known is None:
            found.append(f"{name_of(row)}: no committed row")
        elif changes := worse(row, known):
            found.append(f"{name_of(row)}: {', '.join(changes)}")
    return found + [
        f"{name_of(row)}: committed, but nothing launches it" for row in before.values()
    ]


def updated(rows: list[Row], committed: list[Row], reason: str | None) -> list[Row]:
    """The rows to commit; those that are worse carry the reason, others the one that they had.

    Raises:
        ValueError: a row is worse and there is no reason.
    """
    before = {key_of(row): row for row in committed}
    result = []
    for row in rows:
        known = before.get(key_of(row), {})
        why = known.get("reason")
        if known and (changes := worse(row, known)):
            if not reason:
                raise ValueError(f"a reason is needed, {name_of(row)}: {', '.join(changes)}")
            why = f"{', '.join(changes)}: {reason}"
        result.append(row | {"reason": why})
    return result
