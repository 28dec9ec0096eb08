"""`geollava evaluate sweep` and `failures`: studies over evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geollava.commands.console import progress_bar, progress_of, say
from geollava.commands.evaluate import open_quietly
from geollava.commands.options import (
    BenchmarkArgument,
    DataOptions,
    DeviceOptions,
    ImagesOption,
    ModelOptions,
    OutOption,
    ScoredRunOptions,
    SplitOption,
    number,
)
from geollava.commands.records import spread

ELSEWHERE = "If it lies elsewhere now"


@spread
def sweep(
    benchmark: BenchmarkArgument,
    *,
    data: DataOptions,
    out: OutOption,
    model: ModelOptions,
    methods: Annotated[
        str,
        typer.Option(help="Ways to choose tokens, by commas; the first is what others differ from"),
    ] = "background_anchored,smaller_image,downsample,spatial_pool,uniform,random",
    budgets: Annotated[str, typer.Option(help="Tokens to keep, by commas")] = "6,12,24,48",
    run: ScoredRunOptions,
) -> None:
    """Every method at every budget, and blind: scores against tokens and seconds."""
    from geollava.common.plots import require_matplotlib
    from geollava.evaluate.benchmark import get_benchmark
    from geollava.evaluate.processes import Processes
    from geollava.evaluate.studies.sweep import cells_of
    from geollava.evaluate.studies.sweep import sweep as evaluate_cells

    require_matplotlib()
    cells = cells_of([name.strip() for name in methods.split(",")], parse_budgets(budgets))
    processes = Processes.started(model.device)
    rows = data.of(get_benchmark(benchmark))
    answerer = open_quietly(model.model, model)
    for cell in cells:  # what cannot be done is said before anything is computed
        answerer.reduce(cell.method, cell.num_keep)
    with progress_bar(processes.first) as bar:
        task = bar.add_task("cells", total=len(cells))

        def progress(cell: Any) -> Any:
            bar.update(task, description=f"cells: {cell}", completed=cells.index(cell))
            part = bar.add_task(str(cell), total=None)

            def update(done: int, total: int) -> None:
                bar.update(part, completed=done, total=total, visible=done < total)

            return update

        table = evaluate_cells(rows, answerer, out, cells, run.options(), processes, progress)
    if table is not None:
        say(f"{len(cells)} cells: {out / 'sweep.md'}")


def parse_budgets(text: str) -> list[int]:
    """ "12,24" -> [12, 24]."""
    try:
        budgets = [int(part) for part in text.split(",")]
    except ValueError:
        budgets = []
    if not budgets or min(budgets) < 1:
        raise ValueError(f"--budgets must be numbers from 1 such as 12,24, got {text}")
    return budgets


@spread
def failures(
    results: Annotated[Path, typer.Argument(help="Folder of a finished evaluation")],
    *,
    count: Annotated[int, number("How many")] = 20,
    data: Annotated[str | None, typer.Option(help=ELSEWHERE)] = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    model: Annotated[str | None, typer.Option(help=ELSEWHERE)] = None,
    device: DeviceOptions,
) -> None:
    """The worst replies with what the model looked at, as a page: failures.html."""
    from geollava.evaluate.benchmark import get_benchmark
    from geollava.evaluate.results_folder import read_results
    from geollava.evaluate.studies.failures import write_failures

    protocol = read_results(results)[0]["protocol"]
    rows = DataOptions(data or protocol["source"], split, images)
    examples = rows.of(get_benchmark(protocol["benchmark"]))
    name, method, num_keep = (protocol[key] for key in ("model", "method", "num_keep"))
    answerer = open_quietly(model or name, device, method, num_keep)
    with progress_of("pictures") as progress:
        path = write_failures(results, examples, answerer, count, progress)
    say(str(path))
