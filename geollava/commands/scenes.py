"""`geollava scenes`: scenes whose every object is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from geollava.commands.console import progress_of
from geollava.commands.options import number
from geollava.commands.records import spread
from geollava.common.choices import Ground, SceneLayout, ScenePart


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are drawn, and what is asked about them."""

    size: Annotated[int, number("Side of a scene in pixels")] = 8064
    scale: Annotated[
        float | None,
        typer.Option(
            help="Size of objects; 1: cars of 6 px", show_default="1; varied: from 0.7 to 2 by lot"
        ),
    ] = None
    ground: Annotated[
        Ground, typer.Option(help="What lies below; mixed: one or the other, scene by scene")
    ] = "mixed"
    layout: Annotated[
        SceneLayout,
        typer.Option(help="varied: anything stands anywhere; questions in many words"),
    ] = "xlrs"
    variants: Annotated[int, number("Conversations about each scene to train on")] = 1
    choices: Annotated[
        bool, typer.Option(help="Train on questions with choices and letters too")
    ] = True


@spread
def scenes(
    folder: Annotated[
        Path, typer.Argument(help="For images, train.json, test.json, boxes.json, grounding.json")
    ],
    *,
    count: Annotated[int, number("How many scenes")] = 10,
    first_seed: Annotated[int, number("Seed of the first scene", least=0)] = 0,
    drawn: SceneOptions,
    part: Annotated[ScenePart, typer.Option(help="Make only those to train or test on")] = "both",
) -> None:
    """Make scenes with known answers, to train and to test on."""
    from geollava.scenes import is_test, write_scenes

    seeds = [
        seed
        for seed in range(first_seed, first_seed + count)
        if part == "both" or is_test(seed) == (part == "test")
    ]
    with progress_of("scenes") as progress:
        write_scenes(
            folder, seeds, **asdict(drawn), progress=lambda done: progress(done, len(seeds))
        )
