"""Credit per row -> means, and how far they would move with other scenes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
SCORES = ("micro", "macro", "macro_present")


@dataclass(frozen=True)
class Graded:
    """One row that counts.

    Attributes:
        subtask: None for an unknown subtask; such a row counts in the micro score only.
        credit: 0 to 1.
        scene: rows about one scene are right or wrong together.
        chance: credit expected of a guess.
    """

    subtask: str | None
    credit: float
    scene: Hashable
    chance: float


def summarize(
    graded: Sequence[Graded], subtasks: Sequence[str] | None, seed: int = 0
) -> dict[str, Any]:
    """Means with bootstrap intervals, scenes drawn with replacement.

    Args:
        subtasks: that a macro score is the mean over, one without rows counting 0 as in the public
            evaluations; None: those that occur.

    Returns:
        `micro`: over rows. `macro`: over subtasks; `macro_present`: over those with rows.
        `per_subtask`, `rows_per_subtask`, `chance`, `chance_per_subtask`: as they say.
        `intervals`: (low, high) of `micro`, `macro`, `macro_present` and `per_subtask`; None of
            what one scene alone tells.
    """
    table = Table(graded, subtasks)
    measured, guessed = table.means(table.once, "credit"), table.means(table.once, "chance")
    drawn = table.resampled(seed)
    rows = table.rows.sum(0)
    names = table.subtasks
    return {
        **{name: float(measured[name][0]) for name in SCORES},
        "per_subtask": by_name(names, np.nan_to_num(measured["each"][0])),
        "rows_per_subtask": {name: int(rows[i]) for i, name in enumerate(names)},
        "chance": {name: float(guessed[name][0]) for name in SCORES},
        "chance_per_subtask": by_name(names, np.nan_to_num(guessed["each"][0])),
        "intervals": {
            **{name: interval(drawn[name], table.scenes) for name in SCORES},
            "per_subtask": {
                name: interval(drawn["each"][:, i], int((table.rows[:, i] > 0).sum()))
                for i, name in enumerate(names)
            },
        },
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed, "by": "scene"},
        "scenes": table.scenes,
    }


def difference(
    graded: Sequence[Graded],
    other: Sequence[Graded],
    subtasks: Sequence[str] | None,
    name: str,
    seed: int = 0,
) -> tuple[float, list[float] | None]:
    """How much better a score is than another's over the same rows, and its interval.

    None for the interval where there is one scene alone.

    Args:
        name: of the score, one of `SCORES`.
    """
    ours, theirs = Table(graded, subtasks), Table(other, subtasks)
    if not np.array_equal(ours.rows, theirs.rows):
        raise ValueError("scores can be compared over the same rows alone, these are of others")
    gap = ours.means(ours.once, "credit")[name] - theirs.means(theirs.once, "credit")[name]
    spread = interval(ours.resampled(seed)[name] - theirs.resampled(seed)[name], ours.scenes)
    return float(gap[0]), spread


class Table:
    """Sums by scene and subtask.

    Attributes:
        subtasks: T names.
        scenes: S.
        once: [1, S], every scene standing once.
        rows, credit, chance: [S, T + 1]; the last column has no subtask.
    """

    def __init__(self, graded: Sequence[Graded], subtasks: Sequence[str] | None) -> None:
        if not graded:
            raise ValueError("no row counts: there is nothing to score")
        present = {row.subtask for row in graded if row.subtask is not None}
        self.subtasks = list(subtasks) if subtasks is not None else sorted(present)
        self.present = len(present)
        places = {name: i for i, name in enumerate(self.subtasks)}
        scenes = {scene: i for i, scene in enumerate(dict.fromkeys(row.scene for row in graded))}
        self.scenes = len(scenes)
        self.once = np.ones((1, len(scenes)))
        self.rows, self.credit, self.chance = np.zeros((3, len(scenes), len(places) + 1))
        for row in graded:
            cell = scenes[row.scene], places.get(row.subtask, -1)  # type: ignore[arg-type]
            self.rows[cell] += 1
            self.credit[cell] += row.credit
            self.chance[cell] += row.chance

    def means(self, counts: np.ndarray, what: str) -> dict[str, np.ndarray]:
        """Scores where each scene stands so many times.

        Args:
            counts: [R, S]. what: "credit" or "chance".

        Returns:
            `SCORES` [R]; `each` [R, T], NaN where there is no row.
        """
        credit, rows = counts @ getattr(self, what), counts @ self.rows
        with np.errstate(invalid="ignore"):
            each = (credit / rows)[:, :-1]
        total, known = np.nansum(each, axis=1), (~np.isnan(each)).sum(1)
        present = total / np.maximum(known, 1)
        return {
            "micro": credit.sum(1) / rows.sum(1),
            # A subtask that has rows, but none in the scenes that were drawn, is unknown, not 0.
            "macro": present * self.present / max(len(self.subtasks), 1),
            "macro_present": present,
            "each": each,
        }

    def resampled(self, seed: int) -> dict[str, np.ndarray]:
        """Scores of `RESAMPLES` draws of as many scenes, the same draws for the same seed."""
        count = self.once.shape[1]
        draws = np.random.default_rng(seed).multinomial(count, self.once[0] / count, RESAMPLES)
        return self.means(draws, "credit")


def interval(values: np.ndarray, scenes: int) -> list[float] | None:
    """(low, high) of what is known; None where nothing is, or one scene gives every draw."""
    if scenes < 2:
        return None
    values = values[~np.isnan(values)]
    edges = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    return [float(edge) for edge in np.quantile(values, edges)] if len(values) else None


def by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}
