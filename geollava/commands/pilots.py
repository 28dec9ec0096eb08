"""`geollava evaluate background` and `ablation`: the paper's pilot studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geollava.commands.console import DTYPES, check_one_of, local_path, progress_bar, stderr
from geollava.commands.evaluate import (
    AttentionOption,
    BatchOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    ImagesOption,
    LengthOption,
    LimitOption,
    ModelOption,
    OutOption,
    SplitOption,
    evaluate,
    open_quietly,
)
from geollava.evaluate.benchmark import list_benchmarks


@evaluate.command()
def background(
    scenes: Annotated[
        Path,
        typer.Argument(
            parser=local_path,
            metavar="SCENES",
            help="Folder of images, or CSV or Parquet of paths",
        ),
    ],
    out: OutOption,
    model: ModelOption = None,
    threshold: Annotated[float, typer.Option(help="Cosine from which on it is background")] = 0.9,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """How much of scenes is background, by the similarity of windows of about 64 pixels."""
    check_one_of("--dtype", dtype, DTYPES)

    from geollava.answering.scene_list import read_scenes
    from geollava.common.plots import require_matplotlib
    from geollava.evaluate import report
    from geollava.evaluate.studies import background_share
    from geollava.evaluate.studies.ablation import AblatedModel

    require_matplotlib()
    paths = read_scenes(scenes)[:limit]
    ours = AblatedModel.of(open_quietly(model, None, None, device, dtype, None))
    with progress_bar() as bar:
        task = bar.add_task("scenes", total=None)
        results = background_share.measure(
            ours.model,
            ours.processor,
            paths,
            threshold,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    background_share.write({"model": ours.name, "weights": ours.weights, **results}, out)
    share = report.with_interval(results["share"], results["interval"])
    stderr.print(f"{share} % background: {out / 'background.md'}", markup=False, soft_wrap=True)


@evaluate.command()
def ablation(
    benchmark: Annotated[str, typer.Argument(help=", ".join(list_benchmarks()))],
    data: DataOption,
    out: OutOption,
    model: ModelOption = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    method: Annotated[str | None, typer.Option(help="How tokens are chosen at first")] = None,
    num_keep: Annotated[int | None, typer.Option(min=1, help="Tokens to keep at first")] = None,
    limit: LimitOption = None,
    batch_size: BatchOption = 8,
    max_new_tokens: LengthOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    attention: AttentionOption = None,
) -> None:
    """Questions asked without the tokens of their objects, and without as many random ones."""
    check_one_of("--dtype", dtype, DTYPES)

    from geollava.common.plots import require_matplotlib
    from geollava.evaluate.benchmark import get_benchmark
    from geollava.evaluate.rows import Data
    from geollava.evaluate.runner import Options
    from geollava.evaluate.studies.ablation import AblatedModel, ablate, about_boxes

    require_matplotlib()
    rows = Data(about_boxes(get_benchmark(benchmark)), data, split, images)
    answerer = open_quietly(model, method, num_keep, device, dtype, attention)
    options = Options(False, batch_size, max_new_tokens, limit)
    with progress_bar() as bar:
        task = bar.add_task("questions", total=None)
        ablate(
            rows,
            AblatedModel.of(answerer),
            out,
            options,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    stderr.print(str(out / "ablation.md"), markup=False, soft_wrap=True)
