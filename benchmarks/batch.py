"""Scenes a minute of `geollava batch --engine ray` with one worker and with two, a core each.

The first scenes of each worker are not counted: that is Ray starting and the model being loaded.
The answers of both are compared before anything is reported.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import results
from benchmarks.imagery import make_scene
from benchmarks.measure import in_new_process

WORKERS = 1, 2
WARM_UP = 4  # scenes, two for each worker
QUESTION = "What kind of land use is shown?"


def run(folder: Path, workers: int) -> tuple[float, list[Any]]:
    """(scenes a minute, rows)"""
    import ray
    from pyarrow import parquet

    from geollava.answering.batch import run_batch
    from geollava.answering.settings import Settings
    from geollava.model.default_model import default_checkpoint

    done: list[float] = []
    cores = sorted(os.sched_getaffinity(0))[:workers]
    os.sched_setaffinity(0, cores)  # of Ray, and of all that it starts
    out = folder / f"{workers}.parquet"
    out.unlink(missing_ok=True)
    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    run_batch(
        folder / "scenes",
        folder / "questions.txt",
        out,
        Settings(str(default_checkpoint()), device="cpu", max_new_tokens=8),
        engine="ray",
        workers=workers,
        progress=lambda *_: done.append(time.perf_counter()),
    )
    ray.shutdown()
    rows = parquet.read_table(out).drop_columns("seconds").to_pylist()
    scenes = len(done) - 1 - WARM_UP  # the first report says that nothing is done
    return 60 * scenes / (done[-1] - done[WARM_UP]), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--side", type=int, default=2016, help="of each, in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.scenes < 2 * WARM_UP:
        parser.error(f"--scenes must be at least {2 * WARM_UP}, got {options.scenes}")
    device = results.device_name("cpu", max(WORKERS))
    rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scenes").mkdir()
        (folder / "questions.txt").write_text(QUESTION + "\n")
        for index in range(options.scenes):
            make_scene(folder / "scenes" / f"{index:04}.jpg", options.side)
        for _ in range(options.repeats):
            answers = []
            for workers in WORKERS:
                rate, rows = in_new_process(run, folder, workers)
                rates[workers].append(rate)
                answers.append(json.dumps(rows))
            if len(set(answers)) > 1:
                raise SystemExit("the answers differ with the number of workers: not measured")
    medians = {workers: statistics.median(values) for workers, values in rates.items()}
    measured = [
        {
            "op": "batch on Ray",
            "impl": "1 worker" if workers == 1 else f"{workers} workers",
            "shape": [options.scenes, options.side, options.side],
            "dtype": "auto",
            "device": device,
            "torch": torch.__version__,
            "triton": None,
            "scenes_per_minute": round(medians[workers], 1),
            "of_each_run": [round(rate, 1) for rate in rates[workers]],
            "times_faster": round(medians[workers] / medians[WORKERS[0]], 2),
        }
        for workers in WORKERS
    ]
    for row in measured:
        print(row["impl"], row["scenes_per_minute"], "scenes a minute,", row["times_faster"])
    print(results.upsert(measured, device, results.FOLDER / "batch"))


if __name__ == "__main__":
    main()
