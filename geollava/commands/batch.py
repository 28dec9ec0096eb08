"""`geollava batch`: many questions about many scenes, into one Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geollava.commands.console import note, progress_of, quiet_transformers, say
from geollava.commands.options import SettingsOptions, number, scenes_argument
from geollava.commands.records import spread
from geollava.common.choices import Engine
from geollava.model.default_model import DEMONSTRATION, is_default


@spread
def batch(
    scenes: Annotated[
        Path,
        scenes_argument(
            "Folder (images by their suffix; other files become errors, side files, texts "
            "and tables are left out), or CSV or Parquet file with a column image of paths"
        ),
    ],
    *,
    questions: Annotated[Path, typer.Option(help="Text file, a question on each line")],
    out: Annotated[Path, typer.Option(help="Parquet file for the answers; finished rows stay")],
    engine: Annotated[
        Engine, typer.Option(help="local: in this process; ray: on Ray Data (extra ray)")
    ] = "local",
    workers: Annotated[int | None, number("Models at a time on Ray (default: one per GPU)")] = None,
    settings: SettingsOptions,
) -> None:
    """Ask every question about every scene; goes on where it was stopped."""
    from geollava.answering.batch import run_batch

    quiet_transformers()
    if is_default(settings.model):
        note(DEMONSTRATION)
    with progress_of("scenes") as progress:
        rows, errors = run_batch(
            scenes,
            questions,
            out,
            settings,
            engine=engine,
            workers=workers,
            progress=progress,
        )
    say(f"{rows:,} rows in {out}, {errors:,} of them with an error")
