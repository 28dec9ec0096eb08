"""`geollava train`: a training run from its YAML file."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from geollava.common.malloc import return_freed_memory


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; examples/train has some")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint")
    ] = False,
) -> None:
    """Train: in full, with LoRA or QLoRA, on one device or sharded."""
    from geollava.training.config import read_config

    settings = read_config(config)  # before anything heavy is imported

    import torch

    from geollava.training.run import train as run

    if not torch.cuda.is_available():
        return_freed_memory()
    with contextlib.redirect_stdout(sys.stderr):  # the trainer prints its progress
        target = run(settings, resume=resume)
    print(target)
