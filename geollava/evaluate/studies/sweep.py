"""One benchmark over methods, budgets and controls: what tokens and seconds buy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geollava.common.outputs import written_whole
from geollava.evaluate import report
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.models.answerer import Answerer
from geollava.evaluate.processes import Processes
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from geollava.evaluate.scores import Graded, difference
from geollava.evaluate.studies.failures import read_results


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
        results = evaluate(
            data,
            answerer,
            out / "cells" / str(cell),
            replace(options, blind=cell.blind),
            processes,
            progress(cell),
        )
        if results is not None:
            found[cell] = results
    if not processes.first:
        return None
    first = cells[0]
    name = report.headline(found[first])
    rows = []
    for cell, results in found.items():
        base = Cell(first.method, cell.num_keep) if not cell.blind else first
        row = summary(cell, results, name)
        if base != cell:
            gap, spread = difference(
                graded_lines(lines_of(out, cell)),
                graded_lines(lines_of(out, base)),
                data.benchmark.subtasks,
                name,
                options.seed,
            )
            row |= {"compared_with": str(base), "difference": gap, "difference_interval": spread}
        rows.append(row)
    table = {
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
    with written_whole(out / "sweep.md") as partial:
        partial.write_text(markdown(table), encoding="utf-8")
    with written_whole(out / "sweep.png") as partial:
        plot(table, partial)
    with written_whole(out / "sweep.json") as partial:
        partial.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return table


def lines_of(out: Path, cell: Cell) -> list[dict[str, Any]]:
    return read_results(out / "cells" / str(cell))[1]


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


def graded_lines(lines: Sequence[dict[str, Any]]) -> list[Graded]:
    """The rows of a finished evaluation, answered and bad, to compare it with another."""
    return [
        Graded(
            subtask=line["subtask"],
            credit=line.get("credit", 0.0),
            scene=line["images"][0] if line["images"] else line["row"],
            chance=0.0,
        )
        for line in lines
    ]


def markdown(table: dict[str, Any]) -> str:
    rows, protocol = table["rows"], table["protocol"]
    lines = [
        f"# {table['title']}: {protocol['model']}",
        "",
        f"{rows['asked']:,} questions about {table['scenes']:,} images; "
        f"{report.NAMES[table['score']]} score in percent with 95 % bootstrap intervals "
        f"by image; chance {report.percent(table['chance'])}."
        " Seconds are per question: an image is encoded once for all its questions."
        + report.few_images(table["scenes"]),
        "",
        "| tokens are chosen by | kept per crop | tokens per question | score | difference to "
        "the first at this budget | s to encode | s to answer |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table["cells"]:
        tokens = "-" if row["tokens"] is None else f"{row['tokens']:,.0f}"
        lines.append(
            f"| {row['method'] or 'blind: no image'} | {row['num_keep'] or '-'} | {tokens} | "
            f"{report.with_interval(row['score'], row['interval'])} | {report.gap(row)} | "
            f"{row['encode_seconds']:.2f} | {row['answer_seconds']:.2f} |"
        )
    subtasks = list(table["cells"][0]["per_subtask"])
    lines += ["", "| correct, % | " + " | ".join(row["cell"] for row in table["cells"]) + " |"]
    lines.append("|---" * (1 + len(table["cells"])) + "|")
    for subtask in subtasks:
        scores = [report.percent(row["per_subtask"].get(subtask, 0)) for row in table["cells"]]
        lines.append(f"| {subtask} | " + " | ".join(scores) + " |")
    lines += ["", "## Protocol", "| | |", "|---|---|"]
    lines += [
        f"| {name} | {report.cell(value)} |"
        for name, value in protocol.items()
        if name not in ("method", "num_keep", "tokens_per_crop", "blind")
    ]
    return "\n".join(lines) + "\n"


def plot(table: dict[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    seeing = [row for row in table["cells"] if row["method"] is not None]
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
        for row in table["cells"]:
            if row["method"] is None:
                axes.axhline(100 * row["score"], color="#6b7280", ls="--", lw=1.2, label="blind")
        axes.axhline(100 * table["chance"], color="#111827", ls=":", lw=1.4, label="chance")
        axes.set_xscale("log")
        for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatted("{x:,g}")
        axes.tick_params(axis="x", which="both", labelrotation=45, labelsize=8)
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"{report.NAMES[table['score']]} score, %")
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    model = table["protocol"]["model"].rstrip("/").split("/")[-1]
    figure.suptitle(f"{table['title']}: {model} (whiskers: 95 % bootstrap by image)", fontsize=10)
    figure.savefig(path, dpi=130)
