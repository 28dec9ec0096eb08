"""Committed rows: one JSON object a line, a file for each board.

A row holds what its score is made of, image by image, so that score and interval are computed again
wherever rows are read; a digest covers all else. A row that was altered is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.leaderboard.intervals import score_of
from tokenprune import __version__

FOLDER = Path(__file__).parent / "rows"
BOARDS = ("features", "answers")
KEY = ("method", "budget", "seed")
BUDGETS = (0.5, 0.25, 0.1, 0.05)

Row = dict[str, Any]


def new_row(
    method: str,
    budget: float | None,
    *,
    seed: int | None,
    host: str,
    data: str,
    weights: str,
    num_keep: int | None = None,
    per_image: dict[str, list[list[float]]] | None = None,
    kinds: dict[str, Any] | None = None,
    cpu_seconds: float | None = None,
    refused: str | None = None,
) -> Row:
    """A row with scores, versions and digest.

    Args:
        budget: the share to keep; None where there is none, as for a method that is refused.
        seed: of the host, None where the board has no host.
        data, weights: first digits of SHA-256 of all that was looked at, and of all weights.
        num_keep: tokens that remain of an image.
        per_image: by score, of each image [reached, possible].
        kinds: further scores by kind of question, without what they are made of.
        cpu_seconds: of one thread, per image or per question.
        refused: why the method cannot run here, in its own words.
    """
    scores = {name: score_of(pairs) for name, pairs in (per_image or {}).items()}
    row = {
        "method": method,
        "budget": budget,
        "seed": seed,
        "host": host,
        "num_keep": num_keep,
        "cpu_seconds": cpu_seconds,
        "scores": scores,
        "kinds": kinds or {},
        "refused": refused,
        "versions": {
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "tokenprune": __version__,
        },
        "data": data,
        "weights": weights,
        "per_image": per_image or {},
    }
    return row | {"digest": digest(row)}


def digest(row: Row) -> str:
    rest = {name: value for name, value in row.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def check(row: Row) -> Row:
    """
    Raises:
        ValueError: the row is not what was measured.
    """
    name = f"the row of {row['method']} at {row['budget']}, seed {row['seed']},"
    for score, pairs in row["per_image"].items():
        if (found := score_of(pairs)) != row["scores"].get(score):
            raise ValueError(
                f"{name} must have {score} = {found}, it has {row['scores'].get(score)}"
            )
    if digest(row) != row["digest"]:
        raise ValueError(f"{name} must have the digest {digest(row)}, it has {row['digest']}")
    return row


def read(board: str, folder: Path = FOLDER) -> list[Row]:
    """Rows of a board, none where it has no file.

    Raises:
        ValueError: no such board, or a row that was altered, or one that is there twice.
    """
    if board not in BOARDS:
        raise ValueError(f"board must be one of {', '.join(BOARDS)}, got {board!r}")
    path = folder / f"{board}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [check(json.loads(line)) for line in lines]
    if len({key(row) for row in rows}) != len(rows):
        raise ValueError(f"{path.name} has two rows of one method, budget and seed")
    return rows


def put(board: str, row: Row, folder: Path = FOLDER) -> None:
    """Adds a row, in the place of one of its key; the file appears whole or not at all."""
    rows = {key(known): known for known in read(board, folder)} | {key(row): row}
    ordered = sorted(
        rows.values(), key=lambda one: (one["method"], one["seed"] or 0, -(one["budget"] or 0))
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{board}.jsonl"
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(one) + "\n" for one in ordered), encoding="utf-8")
    partial.replace(path)
