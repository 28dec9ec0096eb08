"""Figures of geollava: what training takes, sizes and limits; rows and constants of the code."""

from __future__ import annotations

from functools import cache
from typing import Any

from figures import (
    TWO_THREADS,
    figure,
    measured,
    mebibytes,
    percent,
    result,
    row,
    seconds,
    table,
)
from figures_small_model import cell, score

# -- what an image takes --------------------------------------------------------------------------


def end_to_end(side: int) -> dict[str, Any]:
    return row(f"end_to_end/{TWO_THREADS}", shape=[side, side])


@figure
def ask_8k_seconds() -> str:
    """From an 8,192 x 8,192 JPEG to the first word, with the shipped model on two threads."""
    return seconds(end_to_end(8192)["latency_ms"]["p50"] / 1000)


@figure
def ask_8k_memory() -> str:
    return mebibytes(end_to_end(8192)["peak_memory_mib"])


# -- the shipped model ----------------------------------------------------------------------------


@measured
def demonstration_tasks() -> str:
    ours, blind = cell("background_anchored-24"), cell("blind")
    body = [
        (task.split("/")[1], percent(value, 0), percent(blind["per_subtask"][task], 0))
        for task, value in ours["per_subtask"].items()
    ]
    return table(("task", "right", "blind"), body)


# -- training -------------------------------------------------------------------------------------


def head(kind: str) -> str:
    found = result("small_model/learn_head")[kind]
    return score(found["mean"], found["interval"])


@figure
def head_random() -> str:
    return head("frozen")


@figure
def head_learned() -> str:
    return head("learned")


@figure
def head_things() -> str:
    return f"{result('small_model/learn_head')['things']:,}"


@figure
def head_worst() -> str:
    """The one run of five that collapsed."""
    return percent(min(found["learned"] for found in result("small_model/learn_head")["rows"]), 0)


@figure
def training_step_seconds() -> str:
    return seconds(row(f"training_step/{TWO_THREADS}", op="training step")["seconds"])


@cache
def needs() -> dict[str, dict[str, float]]:
    """GiB of each kind, by form of training; counted by `geollava.training.plan`."""
    import runpy
    from pathlib import Path

    counted = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train" / "memory.py"))
    return {name: counted["count"](form) for name, form in counted["FORMS"].items()}


@measured
def training_memory() -> str:
    """One 8K image on one GPU, by form of training."""
    forms = needs()
    kinds = next(iter(forms.values()))
    body = [(kind, *(f"{need[kind]:.1f}" for need in forms.values())) for kind in kinds]
    body.append(("together", *(f"{sum(need.values()):.1f}" for need in forms.values())))
    return table(("GiB, on fake tensors", *forms), body)


@figure
def small_card() -> str:
    return f"24 GB are {24e9 / 2**30:.1f} GiB"


# -- constants of the code ------------------------------------------------------------------------


@figure
def decoder_seconds() -> str:
    from geollava.imagery.worker import BYTES_PER_SECOND, PIXELS_PER_SECOND, SECONDS

    megabytes, megapixels = BYTES_PER_SECOND / 1e6, PIXELS_PER_SECOND / 1e6
    return (
        f"{SECONDS} seconds, and one more for every {megabytes:.0f} MB of the file and every "
        f"{megapixels:.0f} megapixels"
    )


@figure
def decoder_memory() -> str:
    from geollava.imagery.worker import MEMORY_BYTES

    return f"{MEMORY_BYTES / 2**30:.0f} GiB"


@figure
def picture_limit() -> str:
    from geollava.imagery.picture import MAX_PIXELS

    return f"{MAX_PIXELS / 1e6:,.0f} megapixels"


@figure
def raster_limit() -> str:
    from geollava.imagery.raster import MAX_PIXELS

    return f"{MAX_PIXELS / 1e6:,.0f} megapixels"


@figure
def published_limit() -> str:
    """The pixels up to which the published pipeline decodes an image."""
    from geollava.imagery.scene import PUBLISHED_MAX_PIXELS

    return f"{PUBLISHED_MAX_PIXELS / 1e6:,.0f} megapixels"


@figure
def smallest_side() -> str:
    from geollava.imagery.scene import MIN_SIDE

    return f"{MIN_SIDE} pixels"


@figure
def stretch_percentiles() -> str:
    from geollava.imagery.stretch import PERCENTILES

    low, high = PERCENTILES
    return f"{low:.0f}nd and {high:.0f}th percentile"


@figure
def session_memory() -> str:
    from geollava.answering.memory import SESSION_MEMORY, parse_memory

    return f"{parse_memory(SESSION_MEMORY) / 2**30:.0f} GiB"


@figure
def cpu_chunk() -> str:
    from geollava.model.vision import CPU_CHUNK_SIZE

    return f"{CPU_CHUNK_SIZE} crops"


@figure
def gpu_chunk() -> str:
    from geollava.model.vision import CHUNK_SIZE

    return f"{CHUNK_SIZE} crops"


@figure
def part_seconds() -> str:
    from geollava.answering.batch import SECONDS_PER_PART

    return f"{SECONDS_PER_PART:.0f} seconds"


@figure
def prefix_8k() -> str:
    """Keys and values of an 8K scene in the published sizes, in bfloat16."""
    import torch

    from geollava import GeoLlavaConfig
    from geollava.answering.prefix import prefix_bytes

    config = GeoLlavaConfig()
    return mebibytes(prefix_bytes(config, crops_8k() * config.num_keep, torch.bfloat16) / 2**20)


def crops_8k() -> int:
    from geollava import GeoLlavaConfig
    from geollava.imagery import Canvas

    config = GeoLlavaConfig()
    side = config.vision_config.image_size
    return Canvas.choose((8192, 8192), config.canvases(), side).crops


@measured
def sizes_8k() -> str:
    """Every step of an 8,192 x 8,192 image in the published sizes."""
    from geollava import GeoLlavaConfig
    from geollava.imagery import Canvas

    config = GeoLlavaConfig()
    side, keep = config.vision_config.image_size, config.num_keep
    canvas = Canvas.choose((8192, 8192), config.canvases(), side)
    rows_, cols = canvas.grid
    crops, patches = canvas.crops, config.tokens_per_crop
    vision, text = config.vision_config.hidden_size, config.text_config.hidden_size
    image = " × ".join(f"{edge:,}" for edge in canvas.size)
    steps = (
        ("file → scene", "8,192 × 8,192 RGB, read by rows", "imagery/files.py"),
        ("scene → canvas", f"{image} pixels", "imagery/canvas.py"),
        (
            "canvas → crops",
            f"{rows_} × {cols} = {crops:,} crops of {side} × {side}",
            "imagery/crops.py",
        ),
        (
            "crops → vision tokens",
            f"{crops:,} × {patches:,} = {crops * patches:,} of width {vision:,}",
            "model/vision_tower.py",
        ),
        (
            "vision tokens → kept tokens",
            f"{crops:,} × {keep:,} = {crops * keep:,} of width {vision:,}",
            "model/token_reduction.py",
        ),
        ("kept tokens → text width", f"{crops * keep:,} of width {text:,}", "model/projector.py"),
        (
            "prompt → answer",
            f"{crops * keep:,} visual tokens and the words of the question",
            "answering/session.py",
        ),
    )
    body = [(step, what, f"`geollava/{file}`") for step, what, file in steps]
    return table(("step", "what comes out", "file"), body)
