"""File -> crops: seconds and peak memory of the published pipeline and of ours, in turn.

Every run is a process of its own, so that one's memory is not another's. Nothing is reported when
the pixels differ.
"""

from __future__ import annotations

import argparse
import math
import operator
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import measure, results
from benchmarks.measure import in_new_process
from geollava import imagery
from geollava.imagery import resizer

PUBLISHED, OURS, WITHOUT_NUMBA = IMPLEMENTATIONS = "published", "ours", "ours without numba"
CROP_SIZE = 336
ENCODER_CHUNK = 16  # crops that are normalized at a time, as `geollava` does on a CPU


def make_scene(path: Path, side: int) -> None:
    """A square picture of that side, about as hard to decode as an aerial image."""
    generator = np.random.default_rng(side)
    coarse = generator.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    fine = generator.integers(0, 24, (side, side, 1), dtype=np.uint8)
    Image.fromarray(pixels - np.minimum(pixels, fine)).save(path, quality=90)


def run(impl: str, path: Path, threads: int) -> tuple[dict[str, float], Tensor]:
    """(measurements, crops)

    Measurements are the seconds to "decode", to make "crops" and to "normalize" them, and the
    largest size of the process in MiB before the last, "peak", and after it, "peak_normalized".
    Loading code takes memory, but no time here. Crops of the published way are normalized already.
    """
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if impl == PUBLISHED:
        from benchmarks.baselines.published_crops import crops_of, decode

        start = time.perf_counter()
        image: Any = decode(path)
        decoded = time.perf_counter()
        crops = crops_of(image)
    else:
        if impl == WITHOUT_NUMBA:
            resizer.COMPILED_PIXELS = math.inf
        else:
            resizer.fastest_passes()  # loads them
        start = time.perf_counter()
        image = imagery.open_scene(path)
        image.read_rows(0, 1, 1)  # decodes
        decoded = time.perf_counter()
        canvases = imagery.allowed_canvases(CROP_SIZE, 576, 49)
        canvas = imagery.Canvas.choose(image.size, canvases, CROP_SIZE)
        crops = imagery.all_crops(image, canvas)
    end = time.perf_counter()
    row = {"decode": decoded - start, "crops": end - decoded, "normalize": 0.0}
    row["peak"] = measure.status_mib("VmHWM")
    if impl != PUBLISHED:
        normalized(crops[:1])  # loads it
        start = time.perf_counter()
        for chunk in crops.split(ENCODER_CHUNK):
            normalized(chunk)
        row["normalize"] = time.perf_counter() - start
    row["peak_normalized"] = measure.status_mib("VmHWM")
    return row, crops


def normalized(crops: Tensor) -> Tensor:
    from geollava.model.published import (  # 8 MiB, which making crops does not need
        CLIP_MEAN,
        CLIP_STD,
    )

    return imagery.normalize_crops(crops, CLIP_MEAN, CLIP_STD)


def measured(impl: str, path: Path, threads: int) -> dict[str, float]:
    return run(impl, path, threads)[0]


def largest_difference(path: Path) -> float:
    """Between the normalized crops of both, in units of the normalized values."""
    published, ours = run(PUBLISHED, path, 2)[1][1:], run(OURS, path, 2)[1]
    return max(
        float((normalized(a) - b).abs().max())
        for a, b in zip(ours.split(16), published.split(16), strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=8192, help="of the square image, in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = results.device_name("cpu", options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.jpg"
        make_scene(path, options.side)
        difference = in_new_process(largest_difference, path)
        if not difference <= 1e-6:
            raise SystemExit(f"pixels differ by up to {difference}: not measured")
        runs: dict[str, list[dict[str, float]]] = {impl: [] for impl in IMPLEMENTATIONS}
        for _ in range(options.repeats):
            for impl, rows in runs.items():
                rows.append(in_new_process(measured, impl, path, options.threads))

    def median(impl: str, value: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(value, runs[impl]))

    stages: dict[str, tuple[Callable[[dict[str, float]], float], str]] = {
        "file to crops": (lambda row: row["decode"] + row["crops"], "peak"),
        "image to crops": (lambda row: row["crops"], "peak"),
        "image to normalized crops": (
            lambda row: row["crops"] + row["normalize"],
            "peak_normalized",
        ),
    }
    measurements: list[dict[str, Any]] = [
        {
            "op": stage,
            "impl": impl,
            "shape": [options.side, options.side],
            "dtype": "uint8",
            "device": device,
            "torch": torch.__version__,
            "triton": None,
            "latency_ms": measure.percentiles_ms([seconds(row) for row in runs[impl]]),
            "peak_memory_mib": round(median(impl, operator.itemgetter(peak))),
            "times_faster": median(PUBLISHED, seconds) / median(impl, seconds),
        }
        for stage, (seconds, peak) in stages.items()
        for impl in IMPLEMENTATIONS
    ]
    for row in measurements:
        print(
            f"{row['op']:27}{row['impl']:20}{row['latency_ms']['p50'] / 1e3:7.2f} s"
            f"{row['peak_memory_mib']:7,} MiB{row['times_faster']:7.1f} times"
        )
    print(results.upsert(measurements, device, results.FOLDER / "imagery"))


if __name__ == "__main__":
    main()
