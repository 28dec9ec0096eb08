"""`geollava export`: a checkpoint of a run, or of a checkpoint in the other form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geollava.commands.console import quiet_transformers
from geollava.common.choices import CheckpointForm, WeightDtype


def export(
    source: Annotated[Path, typer.Argument(help="A training run, or a checkpoint of either form")],
    target: Annotated[Path, typer.Argument(help="New folder for the checkpoint")],
    form: Annotated[
        CheckpointForm, typer.Option(help="own: as transformers saves it; published: as released")
    ] = "published",
    dtype: Annotated[WeightDtype, typer.Option(help="Of the weights")] = "float32",
) -> None:
    """Write a run's result, or a checkpoint, in the published form or in our own."""
    from geollava.answering.loading import load
    from geollava.training.export import export_run, save_checkpoint
    from geollava.training.folder import RUN_FILE

    quiet_transformers()
    if (source / RUN_FILE).is_file():
        export_run(source, target, form, dtype)
    else:
        network, processor = load(str(source), "cpu", dtype)
        save_checkpoint(network, processor, target, form)
