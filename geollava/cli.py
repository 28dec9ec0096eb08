"""The command line. Exit codes: 0, 2 for wrong usage or input, 1 for the rest."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from geollava.console import DTYPES, check_one_of, progress_bar, stderr
from geollava.evaluate.pilot_commands import evaluate
from geollava.malloc import keep_freed_memory, return_freed_memory
from geollava.readable import one_line

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Questions to very large remote-sensing images.",
)
app.add_typer(evaluate, name="evaluate")


@app.callback()
def commands() -> None:
    """Questions to very large remote-sensing images."""


@app.command()
def ask(
    image: Annotated[
        Path, typer.Argument(help="JPEG, PNG, WebP, TIFF; GeoTIFF, COG, JPEG 2000, VRT (extra geo)")
    ],
    question: Annotated[str, typer.Argument(help="What to ask")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint: a folder or a hub name (default: a small one that is shipped)"
        ),
    ] = None,
    num_keep: Annotated[
        int | None, typer.Option(help="Visual tokens to keep per crop (default: the model's)")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="How tokens are chosen, as a control (default: as the model does)"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of the answer")] = 128,
    overlay: Annotated[
        Path | None, typer.Option(help="Draw what was kept over the image, into this file")
    ] = None,
    tokens_geojson: Annotated[
        Path | None, typer.Option(help="Write what was kept as polygons, into this file")
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(help="Bands for red, green and blue, such as 4,3,2, or one for gray"),
    ] = None,
    resize: Annotated[
        str,
        typer.Option(help="pillow: pixels as published; fast: from reduced forms where there are"),
    ] = "pillow",
    memory_budget: Annotated[
        str | None, typer.Option(help="What encoding may take beside the weights, such as 8GiB")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "auto",
    max_megapixels: Annotated[
        int | None,
        typer.Option(min=1, help="Refuse larger images (default: 537; rasters 17,180)"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Ask a question about an image."""
    if not question.strip():
        raise ValueError("the question must say something, it is empty")
    if num_keep is not None and num_keep < 1:
        raise ValueError(f"--num-keep must be at least 1, got {num_keep}")
    check_one_of("--dtype", dtype, DTYPES)

    from transformers.utils import logging as transformers_logging

    from geollava import geojson, imagery
    from geollava import overlay as drawing
    from geollava.answer import Stopwatch, answer, load, peak_memory_mib
    from geollava.default_model import default_checkpoint
    from geollava.outputs import check_output
    from geollava.streaming import parse_memory

    transformers_logging.disable_progress_bar()  # of transformers, for loading and saving weights
    transformers_logging.set_verbosity_error()
    stopwatch = Stopwatch()
    if overlay is not None:
        check_output(overlay, "the overlay", drawing.SUFFIXES)
    if tokens_geojson is not None:
        check_output(tokens_geojson, "the GeoJSON file", geojson.SUFFIXES)
    budget = parse_memory(memory_budget) if memory_budget is not None else None
    check_one_of("--resize", resize, imagery.RESIZE_MODES)
    with stopwatch.stage("read"):
        scene = imagery.open_scene(
            image,
            bands=parse_bands(bands),
            max_pixels=max_megapixels and max_megapixels * 1_000_000,
        )
    with stopwatch.stage("load"):
        folder = model if model is not None else str(default_checkpoint())
        network, processor = load(folder, num_keep, device, dtype, method)
        processor.image_processor.resize = resize
    with progress_bar() as bar:
        task = bar.add_task("crops", total=None)
        result = answer(
            network,
            processor,
            scene,
            question,
            max_new_tokens=max_new_tokens,
            memory_budget=budget,
            stopwatch=stopwatch,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if overlay is not None:
        with stopwatch.stage("overlay"):
            drawing.save(drawing.draw(scene, result.kept, result.canvas_size), overlay)

    if tokens_geojson is not None:
        with stopwatch.stage("geojson"):
            collection = geojson.token_features(scene, result.kept, result.canvas_size)
            geojson.save(collection, tokens_geojson)
    if network.config.untrained:
        stderr.print(
            "[yellow]note:[/] this model's weights are untrained, its answer means nothing"
        )
    report = {
        "answer": result.text,
        "model": folder,
        "method": network.config.reduction_method,
        "untrained": network.config.untrained,
        "image_size": list(scene.size),
        "canvas_size": list(result.canvas_size),
        "crops": result.crops,
        "tokens_before": result.tokens_before,
        "tokens_after": result.tokens_after,
        "seconds": {name: round(value, 3) for name, value in stopwatch.seconds.items()},
        "peak_memory_mib": peak_memory_mib(),
    }
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        show(report, overlay)


@app.command()
def batch(
    scenes: Annotated[
        Path, typer.Argument(help="Folder, or CSV or Parquet file with a column image of paths")
    ],
    questions: Annotated[Path, typer.Option(help="Text file, a question on each line")],
    out: Annotated[Path, typer.Option(help="Parquet file for the answers; finished rows stay")],
    engine: Annotated[
        str, typer.Option(help="local: in this process; ray: on Ray Data (extra ray)")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Models at a time on Ray (default: one per GPU)")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint: a folder or a hub name (default: a small one that is shipped)"
        ),
    ] = None,
    num_keep: Annotated[
        int | None,
        typer.Option(min=1, help="Visual tokens to keep per crop (default: the model's)"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="How tokens are chosen, as a control (default: as the model does)"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of an answer")] = 128,
    bands: Annotated[
        str | None,
        typer.Option(help="Bands for red, green and blue, such as 4,3,2, or one for gray"),
    ] = None,
    resize: Annotated[
        str,
        typer.Option(help="pillow: pixels as published; fast: from reduced forms where there are"),
    ] = "pillow",
    memory_budget: Annotated[
        str | None, typer.Option(help="What encoding may take beside the weights, such as 8GiB")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "auto",
) -> None:
    """Ask every question about every scene; goes on where it was stopped."""
    check_one_of("--dtype", dtype, DTYPES)
    check_one_of("--engine", engine, ("local", "ray"))

    from transformers.utils import logging as transformers_logging

    from geollava import imagery
    from geollava.batch import Settings, run_batch
    from geollava.default_model import default_checkpoint
    from geollava.streaming import parse_memory

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    check_one_of("--resize", resize, imagery.RESIZE_MODES)
    chosen = parse_bands(bands)
    settings = Settings(
        model=model if model is not None else str(default_checkpoint()),
        num_keep=num_keep,
        method=method,
        max_new_tokens=max_new_tokens,
        bands=tuple(chosen) if chosen is not None else None,
        resize=resize,
        memory_budget=parse_memory(memory_budget) if memory_budget is not None else None,
        device=device,
        dtype=dtype,
    )
    with progress_bar() as bar:
        task = bar.add_task("scenes", total=None)
        rows, errors = run_batch(
            scenes,
            questions,
            out,
            settings,
            engine=engine,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    stderr.print(f"{rows:,} rows in {out}, {errors:,} of them with an error", soft_wrap=True)


@app.command()
def validate(
    data: Annotated[list[Path], typer.Argument(help="Training data: JSON files")],
    image_folder: Annotated[
        Path | None, typer.Option(help="Where image paths start (default: the file's folder)")
    ] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not decode images: quick, misses cut files")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Check training data. Exit code 2 where a row is bad."""
    from geollava.data import check_files
    from geollava.processing import GeoLlavaImageProcessor

    with progress_bar() as bar:
        task = bar.add_task("images", total=None)
        report, _ = check_files(
            data,
            image_folder,
            select_canvas=GeoLlavaImageProcessor().select_canvas,
            decode=not headers_only,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        show_problems(report)
    if report.problems:
        raise typer.Exit(2)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file; examples/train has some")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint")
    ] = False,
) -> None:
    """Train: in full, with LoRA or QLoRA, on one device or sharded."""
    from geollava.train_config import read_config

    settings = read_config(config)  # before anything heavy is imported

    import torch

    from geollava.train import train as run

    if not torch.cuda.is_available():
        return_freed_memory()
    with contextlib.redirect_stdout(sys.stderr):  # the trainer prints its progress
        target = run(settings, resume=resume)
    print(target)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A training run, or a checkpoint of either form")],
    target: Annotated[Path, typer.Argument(help="New folder for the checkpoint")],
    form: Annotated[str, typer.Option(help="own, published")] = "published",
    dtype: Annotated[
        str, typer.Option(help="Of the weights: float32, bfloat16, float16")
    ] = "float32",
) -> None:
    """Write a run's result, or a checkpoint, in the published form or in our own."""
    check_one_of("--form", form, ("own", "published"))
    check_one_of("--dtype", dtype, DTYPES[1:])

    from geollava.answer import load
    from geollava.train import RUN_FILE, export_run, save_checkpoint

    if (source / RUN_FILE).is_file():
        export_run(source, target, form, dtype)
    else:
        network, processor = load(str(source), None, "cpu", dtype)
        save_checkpoint(network, processor, target, form)


@app.command()
def scenes(
    folder: Annotated[Path, typer.Argument(help="Where images, train.json and test.json go")],
    count: Annotated[int, typer.Option(min=1, help="How many scenes")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first scene")] = 0,
    size: Annotated[int, typer.Option(help="Side of a scene in pixels")] = 8064,
    scale: Annotated[float, typer.Option(help="Size of objects; 1: cars of 6 px")] = 1.0,
    ground: Annotated[str, typer.Option(help="mixed, earth, procedural")] = "mixed",
    variants: Annotated[
        int, typer.Option(min=1, help="Conversations about each scene to train on")
    ] = 1,
    choices: Annotated[
        bool, typer.Option(help="Train on questions with choices and letters too")
    ] = True,
    part: Annotated[str, typer.Option(help="Make only those to train or test on")] = "both",
) -> None:
    """Make scenes with known answers, to train and to test on."""
    from geollava.scenes import is_test, write_scenes

    check_one_of("--part", part, ("both", "train", "test"))
    seeds = [
        seed
        for seed in range(first_seed, first_seed + count)
        if part == "both" or is_test(seed) == (part == "test")
    ]
    with progress_bar() as bar:
        task = bar.add_task("scenes", total=len(seeds))
        write_scenes(
            folder,
            seeds,
            size=size,
            scale=scale,
            ground=ground,
            variants=variants,
            choices=choices,
            progress=lambda done: bar.update(task, completed=done),
        )


def show_problems(report: Any) -> None:
    table = Table("file", "row", "id", "kind", "problem", box=None, padding=(0, 2, 0, 0))
    for problem in report.problems:
        cells = (problem.file, str(problem.row), problem.id, problem.kind, problem.message)
        table.add_row(*(Text(cell) for cell in cells))
    stdout = Console(highlight=False)
    if report.problems:
        stdout.print(table)
    counts = [f"{count} {kind}" for kind, count in report.counts().items() if count]
    stdout.print(f"{report.rows:,} rows, problems: {', '.join(counts) or 'none'}")


def parse_bands(text: str | None) -> list[int] | None:
    """ "4,3,2" -> [4, 3, 2]."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--bands must be numbers such as 4,3,2, got {text}") from error


def show(report: dict[str, Any], overlay: Path | None) -> None:
    stdout = Console(highlight=False)
    stdout.print(report["answer"], markup=False)
    before, after = report["tokens_before"], report["tokens_after"]
    width, height = report["image_size"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("image", f"{width:,} x {height:,} px, {report['crops']} crops")
    table.add_row("visual tokens", f"{before:,} -> {after:,} ({before / after:.0f} times fewer)")
    stages = [f"{name} {seconds:.1f}" for name, seconds in report["seconds"].items()]
    table.add_row("seconds", f"{sum(report['seconds'].values()):.1f}: " + ", ".join(stages))
    table.add_row("peak memory", f"{report['peak_memory_mib']:,} MiB")
    if overlay is not None:
        table.add_row("overlay", str(overlay))
    stderr.print(table)


def first_line(error: BaseException, arguments: list[str]) -> str:
    text = str(error)
    for argument in arguments:  # a file's name may hold a line break
        text = text.replace(argument, one_line(argument)) if argument else text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; an error is one line on the standard error, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    keep_freed_memory()
    for library in ("PIL", "rasterio"):  # what they log of a damaged file, the error says
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except (ValueError, TypeError, NotImplementedError, OSError, ImportError) as error:
        fail(first_line(error, arguments), 2)
    except KeyboardInterrupt:
        fail("interrupted", 1)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own errors have one
        if usage is not None:
            fail(usage() or "no command given", 2)
        if os.environ.get("GEOLLAVA_DEBUG"):
            raise
        line = f"{type(error).__name__}: {first_line(error, arguments)}"
        fail(f"{line} (GEOLLAVA_DEBUG=1 shows where)", 1)


def fail(message: str, code: int) -> None:
    stderr.print("[red]error:[/] ", end="")
    stderr.print(message, markup=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
