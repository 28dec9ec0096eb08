"""The commands of `geollava`; `cli.py` runs them, and says what goes wrong."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from geollava.commands.console import DTYPES, check_one_of, local_path, note, progress_bar, stderr
from geollava.commands.pilots import evaluate
from geollava.common.malloc import return_freed_memory
from geollava.common.readable import one_line

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
        Path,
        typer.Argument(
            parser=local_path,
            metavar="IMAGE",
            help="JPEG, PNG, WebP, TIFF; GeoTIFF, COG, JPEG 2000, VRT (extra geo)",
        ),
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
    exif: Annotated[
        str,
        typer.Option(help="stored: pixels as published; applied: turned as EXIF or TIFF says"),
    ] = "stored",
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

    from geollava import imagery
    from geollava.answering import geojson
    from geollava.answering import overlay as drawing
    from geollava.answering.measures import Stopwatch, peak_memory_mib
    from geollava.answering.session import Session
    from geollava.common.outputs import check_output
    from geollava.model.default_model import DEMONSTRATION, default_checkpoint, is_default

    transformers_logging.disable_progress_bar()  # of transformers, for loading and saving weights
    transformers_logging.set_verbosity_error()
    stopwatch = Stopwatch()
    if overlay is not None:
        check_output(overlay, "the overlay", drawing.SUFFIXES)
    if tokens_geojson is not None:
        check_output(tokens_geojson, "the GeoJSON file", geojson.SUFFIXES)
    check_one_of("--resize", resize, imagery.RESIZE_MODES)
    check_one_of("--exif", exif, imagery.EXIF_MODES)
    folder = model if model is not None else str(default_checkpoint())
    with stopwatch.stage("read"):
        scene = imagery.open_scene(
            image,
            bands=parse_bands(bands),
            max_pixels=max_megapixels and max_megapixels * 1_000_000,
            exif=exif,
        )
    with stopwatch.stage("load"):
        session = Session(
            folder,
            num_keep=num_keep,
            method=method,
            device=device,
            dtype=dtype,
            resize=resize,
            memory_budget=memory_budget,
        )
    seen = session.see(scene)
    with progress_bar() as bar:
        task = bar.add_task("crops", total=None)
        result = seen.ask(
            question,
            max_new_tokens=max_new_tokens,
            stopwatch=stopwatch,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    (tokens,) = seen.encode()
    if overlay is not None:
        with stopwatch.stage("overlay"):
            drawing.save(seen.overlay(), overlay)

    if tokens_geojson is not None:
        with stopwatch.stage("geojson"):
            geojson.save(geojson.token_features(tokens), tokens_geojson)
    demonstration = is_default(folder)
    if demonstration:
        note(DEMONSTRATION)
    config = session.model.config
    if config.untrained:
        note("this model's weights are untrained, its answer means nothing")
    report = {
        "answer": result.text,
        "model": folder,
        "method": config.reduction_method,
        "demonstration": demonstration,
        "untrained": config.untrained,
        "image_size": list(scene.size),
        "canvas_size": list(tokens.canvas.size),
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
        Path,
        typer.Argument(
            parser=local_path,
            metavar="SCENES",
            help="Folder (images by their suffix; other files become errors, side files, texts "
            "and tables are left out), or CSV or Parquet file with a column image of paths",
        ),
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
    exif: Annotated[
        str,
        typer.Option(help="stored: pixels as published; applied: turned as EXIF or TIFF says"),
    ] = "stored",
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
    from geollava.answering.batch import run_batch
    from geollava.answering.settings import Settings
    from geollava.answering.streaming import parse_memory
    from geollava.model.default_model import DEMONSTRATION, default_checkpoint, is_default

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    check_one_of("--resize", resize, imagery.RESIZE_MODES)
    check_one_of("--exif", exif, imagery.EXIF_MODES)
    chosen = parse_bands(bands)
    settings = Settings(
        model=model if model is not None else str(default_checkpoint()),
        num_keep=num_keep,
        method=method,
        max_new_tokens=max_new_tokens,
        bands=tuple(chosen) if chosen is not None else None,
        resize=resize,
        exif=exif,
        memory_budget=parse_memory(memory_budget) if memory_budget is not None else None,
        device=device,
        dtype=dtype,
    )
    if is_default(settings.model):
        note(DEMONSTRATION)
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
    from geollava.model.processing import GeoLlavaImageProcessor
    from geollava.training.validation import check_files

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
    from geollava.training.config import read_config

    settings = read_config(config)  # before anything heavy is imported

    import torch

    from geollava.training.run import train as run

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

    from transformers.utils import logging as transformers_logging

    from geollava.answering.loading import load
    from geollava.training.export import export_run, save_checkpoint
    from geollava.training.folder import RUN_FILE

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if (source / RUN_FILE).is_file():
        export_run(source, target, form, dtype)
    else:
        network, processor = load(str(source), "cpu", dtype)
        save_checkpoint(network, processor, target, form)


@app.command()
def scenes(
    folder: Annotated[
        Path, typer.Argument(help="For images, train.json, test.json, boxes.json, grounding.json")
    ],
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
    problems = report.problems
    if problems:
        cells = [(p.file, str(p.row), p.id, p.kind, p.message) for p in problems]
        rows = [[one_line(cell) for cell in row] for row in cells]  # as names may hold line breaks
        for line in in_columns([("file", "row", "id", "kind", "problem"), *rows]):
            print(line)
    counts = [f"{count} {kind}" for kind, count in report.counts().items() if count]
    print(f"{report.rows:,} rows, problems: {', '.join(counts) or 'none'}")


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines; a terminal too narrow for them wraps them, and nothing is cut off."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def parse_bands(text: str | None) -> list[int] | None:
    """ "4,3,2" -> [4, 3, 2]."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--bands must be numbers such as 4,3,2, got {text}") from error


def show(report: dict[str, Any], overlay: Path | None) -> None:
    print(report["answer"])
    before, after = report["tokens_before"], report["tokens_after"]
    width, height = report["image_size"]
    stages = [f"{name} {seconds:.1f}" for name, seconds in report["seconds"].items()]
    rows = [
        ("image", f"{width:,} x {height:,} px, {report['crops']} crops"),
        ("visual tokens", f"{before:,} -> {after:,} ({before / after:.0f} times fewer)"),
        ("seconds", f"{sum(report['seconds'].values()):.1f}: " + ", ".join(stages)),
        ("peak memory", f"{report['peak_memory_mib']:,} MiB"),
    ]
    if overlay is not None:
        rows.append(("overlay", str(overlay)))
    for line in in_columns(rows):
        print(line, file=sys.stderr)
