"""A benchmark of ours as the functions that a task of lmms-eval names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from geollava.evaluate.benchmark import Benchmark, Row
from geollava.evaluate.rows import IMAGES


class Task:
    """One benchmark; prompts, credit and scores are those of `geollava evaluate`.

    Args:
        metrics: metric of the task -> name of one of `benchmark.more`; None is the mean credit.
    """

    def __init__(self, benchmark: Benchmark, metrics: Mapping[str, str | None]) -> None:
        self.benchmark, self.metrics = benchmark, metrics

    def images(self, document: Mapping[str, Any]) -> list[Any]:
        """Images of a row, as Pillow images in RGB."""
        found = document["image"]
        return [image.convert("RGB") for image in (found if isinstance(found, list) else [found])]

    def prompt(self, document: Mapping[str, Any]) -> str:
        """The question in full.

        Raises:
            ValueError: a row that cannot be asked or graded. lmms-eval builds all prompts before
                anything is asked.
        """
        row = self.row_of(document)
        problem = self.benchmark.problem_of(row)
        if problem is not None:
            raise ValueError(f"row {row.get('index', '?')}: {problem}")
        return self.benchmark.build_prompt(row)

    def target(self, document: Mapping[str, Any]) -> str:
        return str(self.row_of(document)["answer"])

    def outcome(self, document: Mapping[str, Any], replies: Sequence[str]) -> dict[str, Any]:
        """What each metric is aggregated from: the credit, or all that a score over rows needs."""
        row, reply = self.row_of(document), replies[0]
        credit = float(self.benchmark.grade(row, reply))
        whole = {"row": row, "reply": reply, "credit": credit}
        return {metric: credit if name is None else whole for metric, name in self.metrics.items()}

    def score(self, metric: str) -> Callable[[Sequence[Any]], float]:
        """What makes one score, from 0 to 1, of what `outcome` gave for it of all rows."""
        name, more = self.metrics[metric], self.benchmark.more
        if name is None:
            return fmean
        assert more is not None

        def over_rows(outcomes: Sequence[Mapping[str, Any]]) -> float:
            rows, replies, credit = (
                [each[key] for each in outcomes] for key in ("row", "reply", "credit")
            )
            return more(rows, replies, credit)[name]

        return over_rows

    def row_of(self, document: Mapping[str, Any]) -> Row:
        """A row without its images, under this project's names."""
        texts = {name: value for name, value in document.items() if name not in IMAGES}
        return self.benchmark.renamed(texts)
