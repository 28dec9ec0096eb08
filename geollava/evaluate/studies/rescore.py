"""The same replies to XLRS-Bench scored by every protocol in use, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

from geollava.common.readable import one_line, shortened
from geollava.common.tables import table
from geollava.evaluate.benchmarks.xlrs import SUBTASKS
from geollava.evaluate.predictions import Prediction, read_predictions
from geollava.evaluate.report import percent, with_interval
from geollava.evaluate.results_folder import RESULTS
from geollava.evaluate.rows import Data
from geollava.evaluate.scores import Graded, summarize
from geollava.evaluate.studies.protocols import (
    AVERAGES,
    PROTOCOLS,
    PUBLISHED_BY,
    Choices,
    Protocol,
    choices_of,
)

REFERENCE = "published"  # what the others are compared with, row by row


def rescore(path: Path, on_bad_rows: str = "refuse", data: Data | None = None) -> dict[str, Any]:
    """Scores of a file of predictions by every protocol.

    Args:
        path: `predictions.jsonl` of `geollava evaluate xlrs`. If its `results.json` lies beside it,
            both must agree.
        on_bad_rows: rows without a reply are refused, "count-wrong", or "skip".
        data: what was asked. It holds the choices and the second category of each row, which
            predictions do not.

    Returns:
        `rows`, `rows_per_subtask`, `groups`: what `macro_present` is the mean over. `protocols`:
        for each that can be scored, its averages, their intervals by image, how many rows are
        `right`, and how many it judges `otherwise` than the published one.

    Raises:
        ValueError: no whole file of predictions of XLRS-Bench; other data than was asked.
    """
    predictions = read_whole(path)
    beside = results_beside(path, len(predictions))
    for prediction in predictions:
        check(prediction, path)
    bad = [prediction for prediction in predictions if not prediction.answered]
    if bad and on_bad_rows == "refuse":
        raise ValueError(
            f"{path}: row {bad[0].number} has no reply: {bad[0].problem}; --on-bad-rows "
            "count-wrong or skip goes on without such rows"
        )
    if len(bad) == len(predictions):
        raise ValueError(f"{path} must hold at least one reply, it holds none")
    counts = [prediction.answered or on_bad_rows == "count-wrong" for prediction in predictions]
    rows = list(compress(rows_of(predictions, data), counts))
    counted = list(compress(predictions, counts))
    by, groups = groups_of(counted, rows)
    judged = {
        name: [is_right(protocol, *each) for each in zip(counted, rows, strict=True)]
        for name, protocol in PROTOCOLS.items()
        if data is not None or not protocol.needs_choices
    }
    scores = {name: scored(counted, groups, right) for name, right in judged.items()}
    for name, right in judged.items():
        pairs = zip(right, judged[REFERENCE], strict=True)
        scores[name]["otherwise"] = sum(ours != theirs for ours, theirs in pairs)
    return {
        "predictions": str(path),
        "model": beside["protocol"]["model"] if beside else None,
        "rows": {
            "in_file": len(predictions),
            "counted": len(counted),
            "bad": len(bad),
            "on_bad_rows": on_bad_rows,
        },
        "rows_per_subtask": {
            subtask: sum(prediction.subtask == subtask for prediction in counted)
            for subtask in SUBTASKS
        },
        "groups": by,
        "protocols": scores,
        "published_figures": [asdict(published) for published in PUBLISHED_BY],
    }


# -- the file, and what must agree with it ---------------------------------------------------------


def read_whole(path: Path) -> list[Prediction]:
    """All predictions of a finished file, a row after the other. ValueError for a part of one."""
    if path.is_dir():
        raise ValueError(f"{path} must be a file such as results/predictions.jsonl, it is a folder")
    if path.read_bytes()[-1:] not in (b"\n", b""):
        raise ValueError(f"{path} must be whole, its last line is cut")
    predictions = read_predictions(path)
    if not predictions:
        raise ValueError(f"{path} must hold predictions, it is empty")
    for place, prediction in enumerate(predictions):
        if prediction.number != place:
            raise ValueError(
                f"{path} must hold every row from 0 once, in order: row {prediction.number!r} "
                f"stands where row {place} is expected"
            )
    return predictions


def results_beside(path: Path, count: int) -> dict[str, Any] | None:
    """Results of the same evaluation, if they lie beside its predictions."""
    beside = path.parent / RESULTS
    if not beside.is_file():
        return None
    try:
        results: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
        benchmark, asked = results["benchmark"], results["rows"]["asked"]
        results["protocol"]["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{beside} must hold results of an evaluation: {error!r}") from error
    if benchmark != "xlrs":
        raise ValueError(f"{path} must be of the benchmark xlrs, it is of {benchmark}")
    if asked != count:
        raise ValueError(f"{path} must hold {asked} rows as {beside} says, it holds {count}")
    return results


def check(prediction: Prediction, path: Path) -> None:
    """Raises ValueError for what is no prediction of XLRS-Bench."""
    answer, images = prediction.answer, prediction.images
    letters = isinstance(answer, str) and answer and not set(answer) - set("ABCDE")
    known = prediction.subtask in SUBTASKS
    # The understood letters of other benchmarks are no list.
    asked = prediction.answered
    expected = {
        f"subtask must be one of the {len(SUBTASKS)} of XLRS-Bench": (
            known or (not asked and prediction.subtask is None),
            prediction.subtask,
        ),
        "images must be names": (all(isinstance(name, str) for name in images), images),
        "answer must be letters from A to E": (letters or not asked, answer),
        "reply must be a text": (isinstance(prediction.reply, str), prediction.reply),
        "understood must be a list of letters, as of the benchmark xlrs": (
            isinstance(prediction.understood, list) or not asked,
            prediction.understood,
        ),
    }
    for must, (holds, got) in expected.items():
        if not holds:
            text = shortened(repr(got), 80)
            raise ValueError(f"{one_line(str(path))}: row {prediction.number}: {must}, got {text}")


def rows_of(predictions: Sequence[Prediction], data: Data | None) -> list[Any]:
    """The row of each prediction; None without data. ValueError for other rows."""
    if data is None:
        return [None] * len(predictions)
    if len(data.rows) < len(predictions):
        raise ValueError(
            f"{data.source} must hold the {len(predictions)} rows that were asked, it holds "
            f"{len(data.rows)}"
        )
    rows = data.rows[: len(predictions)]
    for prediction, row in zip(predictions, rows, strict=True):
        asked = (str(prediction.index), prediction.answer)
        if asked != (str(row.get("index", prediction.number)), row.get("answer")):
            raise ValueError(
                f"{data.source} is not the data that was asked: its row {prediction.number} has "
                f"another index or answer than the prediction"
            )
    return rows


# -- scores ----------------------------------------------------------------------------------------


def is_right(protocol: Protocol, prediction: Prediction, row: Any) -> bool:
    if not prediction.answered:
        return False
    choices: Choices = choices_of(row) if protocol.needs_choices else {}
    return protocol.read(prediction.reply, choices) == set(prediction.answer)


def groups_of(
    predictions: Sequence[Prediction], rows: Sequence[Any]
) -> tuple[str, list[str | None]]:
    """What VLMEvalKit's macro is the mean over, as far as it is known: by what, and each row's.

    None for a row without a known subtask.
    """
    subtasks = [prediction.subtask for prediction in predictions]
    if not all(row is not None and "l2-category" in row for row in rows):
        return "subtask", subtasks
    return "subtask and l2-category", [
        subtask and f"{subtask}/{row['l2-category']}"
        for subtask, row in zip(subtasks, rows, strict=True)
    ]


def scored(
    predictions: Sequence[Prediction], groups: Sequence[str | None], right: Sequence[bool]
) -> dict[str, Any]:
    def graded(subtasks: Sequence[str | None]) -> list[Graded]:
        return [
            Graded(subtask, float(correct), prediction.graded().scene, 0.0)
            for prediction, subtask, correct in zip(predictions, subtasks, right, strict=True)
        ]

    by_subtask = summarize(graded([prediction.subtask for prediction in predictions]), SUBTASKS)
    by_group = summarize(graded(groups), None)
    found = {name: by_subtask if name != "macro_present" else by_group for name in AVERAGES}
    return {
        **{name: summary[name] for name, summary in found.items()},
        "intervals": {name: summary["intervals"][name] for name, summary in found.items()},
        "right": sum(right),
    }


# -- what is shown ---------------------------------------------------------------------------------


def lines_of(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """A table of the scores in percent, its header first; * marks what a protocol reports."""
    rows = [("protocol", *AVERAGES.values(), "right", "judged otherwise")]
    for name, protocol in PROTOCOLS.items():
        scores = results["protocols"].get(name)
        if scores is None:
            rows.append((name, *["-"] * len(AVERAGES), "-", "-"))
            continue
        cells = [
            percent(scores[average]) + ("*" if average in protocol.reports else "")
            for average in AVERAGES
        ]
        rows.append((name, *cells, str(scores["right"]), str(scores["otherwise"])))
    return rows


def notes_of(results: dict[str, Any]) -> list[str]:
    """What must be known of the table, a sentence each."""
    rows = results["rows"]
    notes = [
        f"{rows['counted']:,} of {rows['in_file']:,} rows count; * is what a protocol reports; "
        "judged otherwise: rows whose verdict is not that of the published protocol.",
        f"Groups are by {results['groups']}"
        + ("." if "l2" in results["groups"] else ", VLMEvalKit's by l2-category too: --data."),
    ]
    present = sum(count > 0 for count in results["rows_per_subtask"].values())
    if present < len(SUBTASKS):
        notes.append(
            f"{present} of {len(SUBTASKS)} subtasks have rows, and the macro counts the others 0: "
            "published figures do not compare with these."
        )
    missing = [name for name in PROTOCOLS if name not in results["protocols"]]
    if missing:
        notes.append(f"{', '.join(missing)} looks at the choices, which the data holds: --data.")
    return notes


def published_lines() -> list[tuple[str, ...]]:
    """A table of the figures that others published, its header first."""
    header = ("published figures, not measured here", "protocol", "average", "as far as is known")
    return [
        header,
        *((p.figures, p.protocol, AVERAGES[p.average], p.source) for p in PUBLISHED_BY),
    ]


def markdown(results: dict[str, Any]) -> str:
    header, *rows = lines_of(results)
    figures_header, *figures = published_lines()
    intervals = [
        (name, *(with_interval(scores[a], scores["intervals"][a]) for a in AVERAGES))
        for name, scores in results["protocols"].items()
    ]
    codes = [(name, protocol.code, protocol.left_out) for name, protocol in PROTOCOLS.items()]
    return "\n".join(
        [
            f"# XLRS-Bench by every protocol: {results['model'] or results['predictions']}",
            "",
            *table(header, rows),
            "",
            *(f"- {note}" for note in notes_of(results)),
            "",
            *table(("with 95 % intervals by image", *AVERAGES.values()), intervals),
            "",
            *table(("protocol", "code", "left out"), codes),
            "",
            *table(figures_header, figures),
            "",
        ]
    )
