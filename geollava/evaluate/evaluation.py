"""One evaluation from beginning to end: rows answered, scored and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geollava.common.plots import require_matplotlib
from geollava.evaluate import report
from geollava.evaluate.models.answerer import Answerer
from geollava.evaluate.predictions import Prediction
from geollava.evaluate.processes import Processes
from geollava.evaluate.results_folder import PREDICTIONS, RESULTS, finish
from geollava.evaluate.rows import Data, Example
from geollava.evaluate.runner import Options, answer_all
from geollava.evaluate.scores import Graded, summarize


def evaluate(
    data: Data,
    answerer: Answerer,
    out: Path,
    options: Options,
    processes: Processes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any] | None:
    """Answers every row and writes `predictions.jsonl`, `results.json`, `.md` and `.png` to `out`.

    Arguments as of `runner.answer_all`.

    Returns:
        What `results.json` holds; None in a process that is not the first.

    Raises:
        ValueError: bad rows where they are refused; results of other settings in the folder.
        ImportError: matplotlib is missing.
    """
    require_matplotlib()
    processes = processes or Processes()
    examples, predictions, settings = answer_all(data, answerer, out, options, processes, progress)
    if not processes.first:
        return None
    results = results_of(data, examples, predictions, settings, options)
    results["seconds"] = seconds_of(predictions, out)
    report.write(results, out)
    finish(out, predictions)
    return results


def results_of(
    data: Data,
    examples: list[Example],
    predictions: list[Prediction],
    settings: dict[str, Any],
    options: Options,
) -> dict[str, Any]:
    """Scores of predictions, and all that another would need to get the same."""
    bad = [prediction for prediction in predictions if not prediction.answered]
    if bad and options.on_bad_rows == "refuse":
        raise ValueError(f"row {bad[0].number} (index {bad[0].index}): {bad[0].problem}")
    benchmark = data.benchmark
    answered = [prediction for prediction in predictions if prediction.answered]
    if not answered:
        raise ValueError(f"every row is bad, the first: {bad[0].problem}")
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        **summarize(graded(data, examples, predictions, options), benchmark.subtasks, options.seed),
        "other_scores": other_scores(data, answered),
        "rows": {
            "in_data": data.in_data,
            "of_benchmark": len(data.rows),
            "asked": len(predictions),
            "answered": len(answered),
            "bad": len(bad),
            "on_bad_rows": options.on_bad_rows,
        },
        "bad_rows": [
            {
                "row": prediction.number,
                "index": prediction.index,
                "subtask": prediction.subtask,
                "problem": prediction.problem,
            }
            for prediction in bad
        ],
        "tokens": {
            name: mean([getattr(prediction, name) for prediction in answered])
            for name in ("crops", "tokens_before", "tokens_after")
        },
        "protocol": {
            "source": data.source,
            **settings,
            "example": next(
                benchmark.build_prompt(example.row)
                for example, prediction in zip(examples, predictions, strict=True)
                if prediction.answered
            ),
            "limit": options.limit,
            "seed": options.seed,
            "decoding": "greedy",
        },
        "published": dict(benchmark.published),
        "published_figure": benchmark.published_figure,
    }


def graded(
    data: Data, examples: list[Example], predictions: list[Prediction], options: Options
) -> list[Graded]:
    """The rows that count: all of them, or those that were answered."""
    return [
        prediction.graded(data.benchmark.chance(example.row) if prediction.answered else 0.0)
        for example, prediction in zip(examples, predictions, strict=True)
        if prediction.answered or options.on_bad_rows == "count-wrong"
    ]


def other_scores(data: Data, answered: list[Prediction]) -> dict[str, float]:
    """What the benchmark reports beside its score, over the answered rows."""
    if data.benchmark.more is None:
        return {}
    return data.benchmark.more(
        [data.rows[prediction.number] for prediction in answered],
        [prediction.reply for prediction in answered],
        [prediction.credit for prediction in answered],
    )


def seconds_of(predictions: list[Prediction], out: Path) -> dict[str, float]:
    """What encoding and answering took, with what earlier runs into this folder did."""
    total = {"encode": 0.0, "answer": 0.0, "rows": 0}
    if (out / PREDICTIONS).exists() and (out / RESULTS).exists():
        total = json.loads((out / RESULTS).read_text(encoding="utf-8"))["seconds"]
    for prediction in predictions:
        if prediction.seconds is not None:
            total["encode"] += prediction.seconds["encode"]
            total["answer"] += prediction.seconds["answer"]
            total["rows"] += 1
    return total


def mean(values: list[float | None]) -> float | None:
    """Of the values that are known; None of none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
