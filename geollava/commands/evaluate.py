"""`geollava evaluate BENCHMARK`: a model's score on a benchmark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from geollava.commands.console import note, progress_of, quiet_transformers, say
from geollava.commands.options import (
    DataOptions,
    DeviceOptions,
    ModelOptions,
    OutOption,
    ReductionOptions,
    ScoredRunOptions,
)
from geollava.commands.records import spread
from geollava.model.default_model import DEMONSTRATION, is_default


@spread
def run_benchmark(
    ctx: typer.Context,
    *,
    data: DataOptions,
    out: OutOption,
    model: ModelOptions,
    reduction: ReductionOptions,
    blind: Annotated[bool, typer.Option("--blind", help="Ask without the image")] = False,
    run: ScoredRunOptions,
) -> None:
    """Every row of the benchmark that the command is named after, asked and scored."""
    from geollava.common.plots import require_matplotlib
    from geollava.evaluate.benchmark import get_benchmark
    from geollava.evaluate.evaluation import evaluate
    from geollava.evaluate.processes import Processes

    require_matplotlib()
    processes = Processes.started(model.device)
    rows = data.of(get_benchmark(str(ctx.info_name)))
    answerer = open_quietly(model.model, model, reduction.method, reduction.num_keep)
    with progress_of("rows", processes.first) as progress:
        results = evaluate(rows, answerer, out, run.options(blind=blind), processes, progress)
    if results is not None:
        show(results, out)


def open_quietly(
    name: str, on: DeviceOptions, method: str | None = None, num_keep: int | None = None
) -> Any:
    """A model to evaluate, reduced as asked; says so where it is the demonstration model."""
    from geollava.evaluate.models.opening import open_model

    quiet_transformers()
    if is_default(name) and os.environ.get("RANK", "0") == "0":  # one process says it for all
        note(DEMONSTRATION)
    return open_model(name, method, num_keep, on.device, on.dtype, on.attention)


def show(results: dict[str, Any], out: Path) -> None:
    from geollava.evaluate.report import NAMES as SCORES
    from geollava.evaluate.report import headline, percent, with_interval

    key = headline(results)
    rows = results["rows"]
    if results["protocol"].get("untrained"):
        note("this model's weights are untrained, its answers mean nothing")
    for bad in results["bad_rows"]:
        say(f"row {bad['row']} (index {bad['index']}): {bad['problem']}")
    say(
        f"{SCORES[key]} {with_interval(results[key], results['intervals'][key])} %, "
        f"micro {percent(results['micro'])} %, chance {percent(results['chance'][key])} %; "
        f"{rows['answered']:,} of {rows['asked']:,} rows answered: {out / 'results.md'}"
    )
