"""File -> crops -> tokens -> first answer token: seconds per stage and peak memory, by image size.

Every run is a process of its own. Without `--model` it is the small model that is shipped:
its language model costs next to nothing, so that the path to it shows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from benchmarks import measure, results
from benchmarks.imagery import make_scene
from benchmarks.measure import in_new_process

SIDES = (2048, 4096, 8192, 16_384)
STAGES = {
    "read": "#9aa5b1",
    "crop": "#e1a01e",
    "encode": "#1f78b4",
    "prefill": "#b2df8a",
    "answer": "#33a02c",
}


def ask(path: Path, model: str | None, device: str, threads: int) -> dict[str, Any]:
    """Seconds per stage, crops, and peak memory in MiB: of the process beyond what it takes with
    the model loaded, and of the device beyond its weights."""
    from geollava.answering.measures import Stopwatch
    from geollava.answering.session import Session
    from geollava.common.malloc import keep_freed_memory

    keep_freed_memory()  # as the command line does
    torch.set_num_threads(threads)
    session = Session(model, device=device)
    before = measure.status_mib("VmRSS")
    weights = torch.cuda.memory_allocated() if device == "cuda" else 0
    stopwatch = Stopwatch()
    with stopwatch.stage("read"):
        seen = session.see(path)
    result = seen.ask("What?", max_new_tokens=1, stopwatch=stopwatch)
    row: dict[str, Any] = {
        "seconds": stopwatch.seconds,
        "crops": result.crops,
        "tokens": [result.tokens_before, result.tokens_after],
        "peak_memory_mib": measure.status_mib("VmHWM") - before,
    }
    if device == "cuda":
        row["device_memory_mib"] = (torch.cuda.max_memory_allocated() - weights) / 2**20
    return row


def measure_side(
    side: int, model: str | None, device: str, threads: int, repeats: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.jpg"
        in_new_process(make_scene, path, side)
        runs = [in_new_process(ask, path, model, device, threads) for _ in range(repeats)]
    totals = [sum(run["seconds"].values()) for run in runs]
    return {
        "op": "end to end",
        "impl": "ours",
        "shape": [side, side],
        "dtype": "auto",
        "device": results.device_name(device, threads),
        "torch": torch.__version__,
        "triton": None,
        "model": model or "default",
        "latency_ms": measure.percentiles_ms(totals * 2 if repeats == 1 else totals),
        "seconds": {
            stage: round(statistics.median(run["seconds"][stage] for run in runs), 3)
            for stage in STAGES
        },
        **{
            name: round(statistics.median(run[name] for run in runs))
            for name in ("peak_memory_mib", "device_memory_mib")
            if name in runs[0]
        },
        "crops": runs[0]["crops"],
        "tokens": runs[0]["tokens"],
    }


def draw(rows: list[dict[str, Any]], title: str) -> Any:
    rows = sorted(rows, key=lambda row: row["shape"][0])
    names = [f"{row['shape'][0]:,} px\n{row['crops']} crops" for row in rows]
    figure, (time_axis, memory_axis) = plt.subplots(
        1, 2, figsize=(12, 1.4 + 0.7 * len(rows)), sharey=True, layout="constrained"
    )
    figure.suptitle(title)
    left = [0.0] * len(rows)
    for stage, color in STAGES.items():
        seconds = [row["seconds"][stage] for row in rows]
        bars = time_axis.barh(names, seconds, left=left, color=color, label=stage)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    time_axis.bar_label(bars, [f"{total:.2f}" for total in left], padding=4, fontsize=9)
    time_axis.set_xlabel("seconds to the first answer token; crop: waiting for crops")
    time_axis.legend(fontsize=8, loc="upper right")
    bars = memory_axis.barh(names, [row["peak_memory_mib"] for row in rows], color="#7f8fa6")
    memory_axis.bar_label(bars, [f"{row['peak_memory_mib']:,}" for row in rows], padding=4)
    memory_axis.set_xlabel("peak memory beyond the loaded model, MiB")
    for axis in (time_axis, memory_axis):
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    time_axis.invert_yaxis()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", help="a checkpoint; the default model without it")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = results.device_name(options.device, options.threads)
    folder = results.FOLDER / "end_to_end"
    for side in options.sides:
        row = measure_side(side, options.model, options.device, options.threads, options.repeats)
        print(side, row["seconds"], f"{row['peak_memory_mib']:,} MiB", flush=True)
        path = results.upsert([row], device, folder)
    figure = draw(results.read(path), f"geollava ask, {device}")
    target = Path("docs") / f"end-to-end-{device}.png"
    figure.savefig(target, dpi=110)
    print(path, target)


if __name__ == "__main__":
    main()
