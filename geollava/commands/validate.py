"""`geollava validate`: what is wrong with training data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from geollava.commands.console import in_columns, progress_of
from geollava.commands.options import JsonOption
from geollava.common.readable import one_line


def validate(
    data: Annotated[list[Path], typer.Argument(help="Training data: JSON files")],
    image_folder: Annotated[
        Path | None, typer.Option(help="Where image paths start (default: the file's folder)")
    ] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not decode images: quick, misses cut files")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check training data. Exit code 2 where a row is bad."""
    from geollava.model.processing import GeoLlavaImageProcessor
    from geollava.training.validation import check_files

    with progress_of("images") as progress:
        report, _ = check_files(
            data,
            image_folder,
            select_canvas=GeoLlavaImageProcessor().select_canvas,
            decode=not headers_only,
            progress=progress,
        )
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        show_problems(report)
    if report.problems:
        raise typer.Exit(2)


def show_problems(report: Any) -> None:
    problems = report.problems
    if problems:
        cells = [(p.file, str(p.row), p.id, p.kind, p.message) for p in problems]
        rows = [[one_line(cell) for cell in row] for row in cells]  # as names may hold line breaks
        for line in in_columns([("file", "row", "id", "kind", "problem"), *rows]):
            print(line)
    counts = [f"{count} {kind}" for kind, count in report.counts().items() if count]
    print(f"{report.rows:,} rows, problems: {', '.join(counts) or 'none'}")
