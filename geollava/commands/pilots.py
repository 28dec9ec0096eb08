"""`geollava evaluate background` and `ablation`: the paper's pilot studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geollava.commands.console import progress_of, say
from geollava.commands.evaluate import open_quietly
from geollava.commands.options import (
    BenchmarkArgument,
    DataOptions,
    LimitOption,
    ModelOptions,
    OutOption,
    ReductionOptions,
    RunOptions,
    scenes_argument,
)
from geollava.commands.records import spread


@spread
def background(
    scenes: Annotated[Path, scenes_argument("Folder of images, or CSV or Parquet of paths")],
    *,
    out: OutOption,
    model: ModelOptions,
    threshold: Annotated[float, typer.Option(help="Cosine from which on it is background")] = 0.9,
    limit: LimitOption = None,
) -> None:
    """How much of scenes is background, by the similarity of windows of about 64 pixels."""
    from geollava.answering.scene_list import read_scenes
    from geollava.common.plots import require_matplotlib
    from geollava.evaluate import report
    from geollava.evaluate.studies import background_share
    from geollava.evaluate.studies.ablation import AblatedModel

    require_matplotlib()
    paths = read_scenes(scenes)[:limit]
    ours = AblatedModel.of(open_quietly(model.model, model))
    with progress_of("scenes") as progress:
        results = background_share.measure(ours.model, ours.processor, paths, threshold, progress)
    background_share.write({"model": ours.name, "weights": ours.weights, **results}, out)
    share = report.with_interval(results["share"], results["interval"])
    say(f"{share} % background: {out / 'background.md'}")


@spread
def ablation(
    benchmark: BenchmarkArgument,
    *,
    data: DataOptions,
    out: OutOption,
    model: ModelOptions,
    reduction: ReductionOptions,
    run: RunOptions,
) -> None:
    """Questions asked without the tokens of their objects, and without as many random ones."""
    from geollava.common.plots import require_matplotlib
    from geollava.evaluate.benchmark import get_benchmark
    from geollava.evaluate.studies.ablation import AblatedModel, ablate, about_boxes

    require_matplotlib()
    rows = data.of(about_boxes(get_benchmark(benchmark)))
    answerer = open_quietly(model.model, model, reduction.method, reduction.num_keep)
    with progress_of("questions") as progress:
        ablate(rows, AblatedModel.of(answerer), out, run.options(), progress)
    say(str(out / "ablation.md"))
