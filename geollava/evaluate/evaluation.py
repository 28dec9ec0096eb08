"""One evaluation from beginning to end: rows answered, scored and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geollava.common.outputs import written_whole
from geollava.evaluate import report
from geollava.evaluate.models.answerer import Answerer
from geollava.evaluate.processes import Processes
from geollava.evaluate.rows import Data, Example
from geollava.evaluate.runner import PREDICTIONS, RESULTS, Line, Options, answer_all
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
    report.require_matplotlib()
    processes = processes or Processes()
    examples, lines, settings = answer_all(data, answerer, out, options, processes, progress)
    if not processes.first:
        return None
    results = results_of(data, examples, lines, settings, options)
    results["seconds"] = seconds_of(lines, out)
    report.write(results, out)
    with written_whole(out / PREDICTIONS) as partial, partial.open("w", encoding="utf-8") as file:
        for line in lines:
            # Seconds differ from run to run; all else is the same after a kill.
            kept = {name: value for name, value in line.items() if name != "seconds"}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")
    for path in out.glob("part-*.jsonl"):
        path.unlink()
    return results


def results_of(
    data: Data,
    examples: list[Example],
    lines: list[Line],
    settings: dict[str, Any],
    options: Options,
) -> dict[str, Any]:
    """Scores of finished lines, and all that another would need to get the same."""
    bad = [line for line in lines if "problem" in line]
    if bad and options.on_bad_rows == "refuse":
        raise ValueError(f"row {bad[0]['row']} (index {bad[0]['index']}): {bad[0]['problem']}")
    benchmark = data.benchmark
    replies = [line for line in lines if "problem" not in line]
    if not replies:
        raise ValueError(f"every row is bad, the first: {bad[0]['problem']}")
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        **summarize(graded(data, examples, lines, options), benchmark.subtasks, options.seed),
        "other_scores": other_scores(data, replies),
        "rows": {
            "in_data": data.in_data,
            "of_benchmark": len(data.rows),
            "asked": len(lines),
            "answered": len(replies),
            "bad": len(bad),
            "on_bad_rows": options.on_bad_rows,
        },
        "bad_rows": [
            {name: line[name] for name in ("row", "index", "subtask", "problem")} for line in bad
        ],
        "tokens": {
            name: mean([line[name] for line in replies if line.get(name) is not None])
            for name in ("crops", "tokens_before", "tokens_after")
        },
        "protocol": {
            "source": data.source,
            **settings,
            "example": next(
                benchmark.build_prompt(example.row)
                for example, line in zip(examples, lines, strict=True)
                if "problem" not in line
            ),
            "limit": options.limit,
            "seed": options.seed,
            "decoding": "greedy",
        },
        "published": dict(benchmark.published),
        "published_figure": benchmark.published_figure,
    }


def graded(
    data: Data, examples: list[Example], lines: list[Line], options: Options
) -> list[Graded]:
    """The rows that count: all of them, or those that were answered."""
    return [
        Graded(
            subtask=line["subtask"],
            credit=line.get("credit", 0.0),
            scene=example.images[0] if example.images else example.number,
            chance=data.benchmark.chance(example.row) if "problem" not in line else 0.0,
        )
        for example, line in zip(examples, lines, strict=True)
        if "problem" not in line or options.on_bad_rows == "count-wrong"
    ]


def other_scores(data: Data, replies: list[Line]) -> dict[str, float]:
    """What the benchmark reports beside its score, over the answered rows."""
    if data.benchmark.more is None:
        return {}
    return data.benchmark.more(
        [data.rows[line["row"]] for line in replies],
        [line["reply"] for line in replies],
        [line["credit"] for line in replies],
    )


def seconds_of(lines: list[Line], out: Path) -> dict[str, float]:
    """What encoding and answering took, with what earlier runs into this folder did."""
    total = {"encode": 0.0, "answer": 0.0, "rows": 0}
    if (out / PREDICTIONS).exists() and (out / RESULTS).exists():
        total = json.loads((out / RESULTS).read_text(encoding="utf-8"))["seconds"]
    for line in lines:
        if "seconds" in line:
            total["encode"] += line["seconds"]["encode"]
            total["answer"] += line["seconds"]["answer"]
            total["rows"] += 1
    return total


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
