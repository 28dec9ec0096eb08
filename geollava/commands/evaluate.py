"""`geollava evaluate ...`: the command line of evaluations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from geollava.commands.console import DTYPES, check_one_of, note, progress_bar, stderr
from geollava.evaluate.benchmark import list_benchmarks

evaluate = typer.Typer(no_args_is_help=True, help="Scores of a model on benchmarks.")

DataOption = Annotated[
    str, typer.Option("--data", help="File, folder or hub name; test.json of geollava scenes too")
]
SplitOption = Annotated[str | None, typer.Option("--split", help="Which part of the data")]
ImagesOption = Annotated[
    Path | None, typer.Option("--images", help="Where image paths start (default: by the data)")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Checkpoint of ours or of transformers: folder or hub name (default: the small one)",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for results; goes on where it was")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only so many rows")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Questions at a time")]
LengthOption = Annotated[
    int | None,
    typer.Option("--max-new-tokens", min=1, help="Length limit of a reply (default: published)"),
]
BadRowsOption = Annotated[str, typer.Option("--on-bad-rows", help="refuse, count-wrong, skip")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap intervals")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps")]
AttentionOption = Annotated[
    str | None,
    typer.Option("--attention", help="sdpa, eager, flash_attention_2 (default: transformers')"),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help=", ".join(DTYPES))]


def run_benchmark(
    ctx: typer.Context,
    data: DataOption,
    out: OutOption,
    model: ModelOption = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    method: Annotated[
        str | None, typer.Option(help="How tokens are chosen, as a control (default: the model's)")
    ] = None,
    num_keep: Annotated[
        int | None, typer.Option(min=1, help="Visual tokens to keep (default: the model's)")
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Ask without the image")] = False,
    limit: LimitOption = None,
    batch_size: BatchOption = 8,
    max_new_tokens: LengthOption = None,
    on_bad_rows: BadRowsOption = "refuse",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    attention: AttentionOption = None,
) -> None:
    check_one_of("--dtype", dtype, DTYPES)

    from geollava.common.plots import require_matplotlib
    from geollava.evaluate.benchmark import get_benchmark
    from geollava.evaluate.evaluation import evaluate
    from geollava.evaluate.processes import Processes
    from geollava.evaluate.rows import Data
    from geollava.evaluate.runner import Options

    require_matplotlib()
    processes = Processes.started(device)
    options = Options(blind, batch_size, max_new_tokens, limit, on_bad_rows, seed)
    rows = Data(get_benchmark(str(ctx.info_name)), data, split, images)
    answerer = open_quietly(model, method, num_keep, device, dtype, attention)
    with progress_bar() as bar:
        task = bar.add_task("rows", total=None, visible=processes.first)
        results = evaluate(
            rows,
            answerer,
            out,
            options,
            processes,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if results is not None:
        show(results, out)


def open_quietly(
    model: str | None,
    method: str | None,
    num_keep: int | None,
    device: str,
    dtype: str,
    attention: str | None,
) -> Any:
    from transformers.utils import logging as transformers_logging

    from geollava.evaluate.models.opening import open_model
    from geollava.model.default_model import DEMONSTRATION, default_checkpoint, is_default

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    name = model if model is not None else str(default_checkpoint())
    if is_default(name) and os.environ.get("RANK", "0") == "0":  # one process says it for all
        note(DEMONSTRATION)
    return open_model(name, method, num_keep, device, dtype, attention)


def show(results: dict[str, Any], out: Path) -> None:
    from geollava.evaluate.report import NAMES as SCORES
    from geollava.evaluate.report import headline, percent, with_interval

    key = headline(results)
    rows = results["rows"]
    if results["protocol"].get("untrained"):
        note("this model's weights are untrained, its answers mean nothing")
    for bad in results["bad_rows"]:
        stderr.print(f"row {bad['row']} (index {bad['index']}): {bad['problem']}", markup=False)
    stderr.print(
        f"{SCORES[key]} {with_interval(results[key], results['intervals'][key])} %, "
        f"micro {percent(results['micro'])} %, chance {percent(results['chance'][key])} %; "
        f"{rows['answered']:,} of {rows['asked']:,} rows answered: {out / 'results.md'}",
        soft_wrap=True,
        markup=False,
    )


for name in list_benchmarks():
    evaluate.command(name, help=f"The benchmark {name}: every row asked, scored and reported.")(
        run_benchmark
    )


@evaluate.command()
def sweep(
    benchmark: Annotated[str, typer.Argument(help=", ".join(list_benchmarks()))],
    data: DataOption,
    out: OutOption,
    model: ModelOption = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    methods: Annotated[
        str,
        typer.Option(help="Ways to choose tokens, by commas; the first is what others differ from"),
    ] = "background_anchored,smaller_image,downsample,spatial_pool,uniform,random",
    budgets: Annotated[str, typer.Option(help="Tokens to keep, by commas")] = "12,24,48",
    limit: LimitOption = None,
    batch_size: BatchOption = 8,
    max_new_tokens: LengthOption = None,
    on_bad_rows: BadRowsOption = "refuse",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    attention: AttentionOption = None,
) -> None:
    """Every method at every budget, and blind: scores against tokens and seconds."""
    check_one_of("--dtype", dtype, DTYPES)

    from geollava.common.plots import require_matplotlib
    from geollava.evaluate.benchmark import get_benchmark
    from geollava.evaluate.processes import Processes
    from geollava.evaluate.rows import Data
    from geollava.evaluate.runner import Options
    from geollava.evaluate.studies.sweep import cells_of
    from geollava.evaluate.studies.sweep import sweep as run

    require_matplotlib()
    cells = cells_of([name.strip() for name in methods.split(",")], parse_budgets(budgets))
    processes = Processes.started(device)
    options = Options(False, batch_size, max_new_tokens, limit, on_bad_rows, seed)
    rows = Data(get_benchmark(benchmark), data, split, images)
    answerer = open_quietly(model, None, None, device, dtype, attention)
    for cell in cells:  # what cannot be done is said before anything is computed
        answerer.reduce(cell.method, cell.num_keep)
    with progress_bar() as bar:
        task = bar.add_task("cells", total=len(cells), visible=processes.first)

        def progress(cell: Any) -> Any:
            bar.update(task, description=f"cells: {cell}", completed=cells.index(cell))
            part = bar.add_task(str(cell), total=None, visible=processes.first)

            def update(done: int, total: int) -> None:
                bar.update(part, completed=done, total=total, visible=done < total)

            return update

        table = run(rows, answerer, out, cells, options, processes, progress)
    if table is not None:
        stderr.print(f"{len(cells)} cells: {out / 'sweep.md'}", markup=False, soft_wrap=True)


def parse_budgets(text: str) -> list[int]:
    try:
        budgets = [int(part) for part in text.split(",")]
    except ValueError:
        budgets = []
    if not budgets or min(budgets) < 1:
        raise ValueError(f"--budgets must be numbers from 1 such as 12,24, got {text}")
    return budgets


@evaluate.command()
def failures(
    results: Annotated[Path, typer.Argument(help="Folder of a finished evaluation")],
    count: Annotated[int, typer.Option(min=1, help="How many")] = 20,
    data: Annotated[str | None, typer.Option(help="If it lies elsewhere now")] = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    model: Annotated[str | None, typer.Option(help="If it lies elsewhere now")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    attention: AttentionOption = None,
) -> None:
    """The worst replies with what the model looked at, as a page: failures.html."""
    check_one_of("--dtype", dtype, DTYPES)

    from geollava.evaluate.benchmark import get_benchmark
    from geollava.evaluate.results_folder import read_results
    from geollava.evaluate.rows import Data
    from geollava.evaluate.studies.failures import write_failures

    protocol = read_results(results)[0]["protocol"]
    rows = Data(get_benchmark(protocol["benchmark"]), data or protocol["source"], split, images)
    name, method, num_keep = (protocol[key] for key in ("model", "method", "num_keep"))
    answerer = open_quietly(model or name, method, num_keep, device, dtype, attention)
    with progress_bar() as bar:
        task = bar.add_task("pictures", total=None)
        path = write_failures(
            results,
            rows,
            answerer,
            count,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    stderr.print(str(path), markup=False, soft_wrap=True)
