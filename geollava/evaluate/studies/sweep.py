"""One benchmark over methods, budgets and controls: what tokens and seconds buy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geollava.common.plots import BASELINE, CHANCE, new_figure
from geollava.common.tables import property_table, table
from geollava.evaluate import report
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.models.answerer import Answerer
from geollava.evaluate.models.controls import SMALLER_IMAGE
from geollava.evaluate.processes import Processes
from geollava.evaluate.results_folder import read_results
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from geollava.evaluate.scores import Graded, difference, summarize


@dataclass(frozen=True)
class Cell:
    """One evaluation of a sweep; blind ones have neither method nor budget."""

    method: str | None
    num_keep: int | None

    @property
    def blind(self) -> bool:
        return self.method is None

    def __str__(self) -> str:
        return "blind" if self.blind else f"{self.method}-{self.num_keep}"


def cells_of(methods: Sequence[str], budgets: Sequence[int]) -> list[Cell]:
    """The first method is what the others are compared with."""
    return [
        *(Cell(method, budget) for budget in budgets for method in dict.fromkeys(methods)),
        Cell(None, None),
    ]


def sweep(
    data: Data,
    answerer: Answerer,
    out: Path,
    cells: Sequence[Cell],
    options: Options,
    processes: Processes,
    progress: Callable[[Cell], Callable[[int, int], None]],
) -> dict[str, Any] | None:
    """Evaluates every cell in a folder of its own, then writes `sweep.json`, `.md` and `.png`.

    A cell that is finished is not computed again.

    Args:
        options: of every cell.
        progress: gives what is called with (rows done, rows in all) for a cell.

    Returns:
        What `sweep.json` holds; None in a process that is not the first.
    """
    found: dict[Cell, dict[str, Any]] = {}
    for cell in cells:
        answerer.reduce(cell.method, cell.num_keep)
        evaluated = evaluate(
            data,
            answerer,
            out / "cells" / str(cell),
            replace(options, blind=cell.blind),
            processes,
            progress(cell),
        )
        if evaluated is not None:
            found[cell] = evaluated
    if not processes.first:
        return None
    first = cells[0]
    name = report.headline(found[first])
    rows = []
    for cell, evaluated in found.items():
        base = Cell(first.method, cell.num_keep) if not cell.blind else first
        row = summary(cell, evaluated, name)
        if (control := Cell(SMALLER_IMAGE, cell.num_keep)) in found and cell != control:
            row["hard"] = on_hard_rows(out, cell, control, options.seed)
        if base != cell:
            gap, spread = difference(
                graded_rows(out, cell),
                graded_rows(out, base),
                data.benchmark.subtasks,
                name,
                options.seed,
            )
            row |= {"compared_with": str(base), "difference": gap, "difference_interval": spread}
        rows.append(row)
    results = {
        "benchmark": data.benchmark.name,
        "title": report.title(found[first]),
        "score": name,
        "chance": found[first]["chance"][name],
        "rows": found[first]["rows"],
        "scenes": found[first]["scenes"],
        "bootstrap": found[first]["bootstrap"],
        "cells": rows,
        "protocol": found[first]["protocol"],
    }
    report.write_report(out, "sweep", markdown(results), plot(results), results)
    return results


def graded_rows(out: Path, cell: Cell) -> list[Graded]:
    """The rows of a finished cell, answered and bad, to compare it with another."""
    predictions = read_results(out / "cells" / str(cell))[1]
    return [prediction.graded() for prediction in predictions]


def on_hard_rows(out: Path, cell: Cell, control: Cell, seed: int) -> dict[str, Any] | None:
    """The micro score on the rows that a smaller image of as many tokens does not get right.

    A row that fewer pixels answer tells nothing of which tokens to keep (VTC-Bench, 2510.07143).

    Returns:
        `score`, `interval` and `rows`; None where the control is right everywhere.
    """
    hard = [
        ours
        for ours, theirs in zip(graded_rows(out, cell), graded_rows(out, control), strict=True)
        if theirs.credit < 1
    ]
    if not hard:
        return None
    found = summarize(hard, None, seed)
    return {
        "score": found["micro"],
        "interval": found["intervals"]["micro"],
        "rows": len(hard),
    }


def summary(cell: Cell, results: dict[str, Any], name: str) -> dict[str, Any]:
    seconds = results["seconds"]
    asked = max(seconds["rows"], 1)
    return {
        "cell": str(cell),
        "method": cell.method,
        "num_keep": cell.num_keep,
        "score": results[name],
        "interval": results["intervals"][name],
        "micro": results["micro"],
        "per_subtask": {
            subtask: value
            for subtask, value in results["per_subtask"].items()
            if results["rows_per_subtask"][subtask]
        },
        "tokens": 0 if cell.blind else results["tokens"]["tokens_after"],
        "encode_seconds": seconds["encode"] / asked,
        "answer_seconds": seconds["answer"] / asked,
    }


def markdown(results: dict[str, Any]) -> str:
    rows, protocol, cells = results["rows"], results["protocol"], results["cells"]
    header = (
        "tokens are chosen by",
        "kept per crop",
        "tokens per question",
        "score",
        "difference to the first at this budget",
        "micro score where a smaller image is wrong",
        "s to encode",
        "s to answer",
    )
    bought = [
        (
            cell["method"] or "blind: no image",
            cell["num_keep"] or "-",
            "-" if cell["tokens"] is None else f"{cell['tokens']:,.0f}",
            report.with_interval(cell["score"], cell["interval"]),
            report.gap(cell),
            hard_score(cell),
            f"{cell['encode_seconds']:.2f}",
            f"{cell['answer_seconds']:.2f}",
        )
        for cell in cells
    ]
    per_subtask = [
        (subtask, *(report.percent(cell["per_subtask"].get(subtask, 0)) for cell in cells))
        for subtask in cells[0]["per_subtask"]
    ]
    changing = ("method", "num_keep", "tokens_per_crop", "blind")
    lines = [
        f"# {results['title']}: {protocol['model']}",
        "",
        f"{rows['asked']:,} questions about {results['scenes']:,} images; "
        f"{report.NAMES[results['score']]} score in percent with 95 % bootstrap intervals "
        f"by image; chance {report.percent(results['chance'])}."
        " Seconds are per question: an image is encoded once for all its questions."
        + report.few_images(results["scenes"]),
        "",
        *table(header, bought),
        "",
        *table(("correct, %", *(cell["cell"] for cell in cells)), per_subtask),
        "",
        "## Protocol",
        *property_table({name: protocol[name] for name in protocol if name not in changing}),
    ]
    return "\n".join(lines) + "\n"


def hard_score(cell: dict[str, Any]) -> str:
    hard = cell.get("hard")
    if hard is None:
        return "-"
    return f"{report.with_interval(hard['score'], hard['interval'])} of {hard['rows']:,}"


def plot(results: dict[str, Any]) -> Any:
    """A figure of scores against tokens, and against seconds."""
    figure = new_figure(11, 4.8)
    panels = figure.subplots(1, 2, sharey=True)
    seeing = [row for row in results["cells"] if row["method"] is not None]
    axes_of = {
        "visual tokens per question": lambda row: row["tokens"],
        "seconds per question": lambda row: row["encode_seconds"] + row["answer_seconds"],
    }
    for axes, (label, place) in zip(panels, axes_of.items(), strict=True):
        for number, method in enumerate(dict.fromkeys(row["method"] for row in seeing)):
            points = [row for row in seeing if row["method"] == method and place(row)]
            points.sort(key=place)
            whiskers = [report.whisker(row["score"], row["interval"]) for row in points]
            axes.errorbar(
                [place(row) for row in points],
                [100 * row["score"] for row in points],
                yerr=list(zip(*whiskers, strict=True)),
                label=method,
                color=f"C{number}",
                marker="os^vDPX*<>"[number % 10],
                lw=2.2 if number == 0 else 1.2,
                capsize=2,
                elinewidth=0.7,
            )
        for row in results["cells"]:
            if row["method"] is None:
                axes.axhline(100 * row["score"], color=BASELINE, ls="--", lw=1.2, label="blind")
        axes.axhline(100 * results["chance"], color=CHANCE, ls=":", lw=1.4, label="chance")
        axes.set_xscale("log")
        for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatted("{x:,g}")
        axes.tick_params(axis="x", which="both", labelrotation=45, labelsize=8)
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel(f"{report.NAMES[results['score']]} score, %")
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    model = results["protocol"]["model"].rstrip("/").split("/")[-1]
    figure.suptitle(f"{results['title']}: {model} (whiskers: 95 % bootstrap by image)", fontsize=10)
    return figure
