"""Seconds and memory of `geollava batch` with eight questions about each 8K scene.

Beside it, in turn, the same with nothing kept between questions (`--session-memory 1`, a byte), or
with `--against FOLDER` what the checkout there does. The answers are compared before anything is
reported.

Two models: the shipped one, most of whose time goes to its tower; and one of random weights, whose
language model takes as long to read an 8K scene as its tower, as it is in the published sizes
(231 and 220 TFLOP).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from pyarrow import parquet

from benchmarks import results
from benchmarks.imagery import make_scene
from benchmarks.measure import in_new_process
from geollava.model.default_model import default_checkpoint

HERE = Path(__file__).resolve().parent.parent
QUESTIONS = (
    "How many cars are in the image?",
    "How many trucks are in the desert?",
    "What kind of vehicle is purple?",
    "What is the color of the object beside the fire?",
    "Is the purple vehicle moving or standing still?",
    "Seen from the helipad, in which direction is the pool?",
    "What is the land use around the helipad?",
    "Something burns in this image. On which land use?",
)
TEXT = {
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "layer_types": ["full_attention"] * 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1408,
}
SHIPPED, PROPORTIONED = "shipped", "published proportions"


def proportioned(folder: Path) -> None:
    """The shipped checkpoint with another language model, of random weights."""
    from geollava import GeoLlavaConfig, GeoLlavaForConditionalGeneration

    shutil.copytree(default_checkpoint(), folder)
    config = GeoLlavaConfig.from_pretrained(folder)
    for name, value in TEXT.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    GeoLlavaForConditionalGeneration(config).save_pretrained(folder)


def batch(checkout: Path, module: str, folder: Path, *options: str) -> tuple[float, int, list[Any]]:
    """(seconds, peak memory of the process in MiB, rows without what is measured)."""
    out = folder / "answers.parquet"
    out.unlink(missing_ok=True)
    arguments = ["batch", folder / "scenes", "--questions", folder / "questions.txt", "--out", out]
    command = [sys.executable, "-m", module, *map(str, arguments), *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=checkout)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"geollava batch of {checkout} failed")
    rows = parquet.read_table(out).drop_columns(["seconds", "fingerprint", "model"]).to_pylist()
    return seconds, usage.ru_maxrss // 1024, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="a checkout of another commit")
    parser.add_argument("--module", default="geollava", help="that its command line is")
    parser.add_argument("--model", choices=(SHIPPED, PROPORTIONED), default=SHIPPED)
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--side", type=int, default=8192, help="of each, in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scenes").mkdir()
        (folder / "questions.txt").write_text("\n".join(QUESTIONS))
        for number in range(options.scenes):
            in_new_process(make_scene, folder / "scenes" / f"{number}.jpg", options.side)
        model = default_checkpoint()
        if options.model == PROPORTIONED:
            in_new_process(proportioned, model := folder / "model")
        same = ("--max-new-tokens", "8", "--model", str(model))
        impls: dict[str, tuple[Any, ...]] = {"kept": (HERE, "geollava", folder, *same)}
        if options.against:
            impls["before"] = (options.against.resolve(), options.module, folder, *same)
        else:
            impls["anew"] = (HERE, "geollava", folder, *same, "--session-memory", "1")
        seconds: dict[str, list[float]] = {impl: [] for impl in impls}
        peaks: dict[str, list[int]] = {impl: [] for impl in impls}
        for _ in range(options.repeats):
            rows = []
            for impl, arguments in impls.items():
                taken, peak, answers = batch(*arguments)
                seconds[impl].append(taken)
                peaks[impl].append(peak)
                rows.append(answers)
            if rows[0] != rows[1]:
                raise SystemExit(f"the answers differ, not measured: {rows}")
    device = results.device_name("cpu", torch.get_num_threads())
    slowest = statistics.median(seconds[list(impls)[1]])
    measured = [
        {
            "op": f"batch, eight questions, {options.model} model",
            "impl": impl,
            "shape": [options.scenes, options.side, options.side],
            "dtype": "auto",
            "device": device,
            "torch": torch.__version__,
            "triton": None,
            "seconds": round(statistics.median(seconds[impl]), 2),
            "of_each_run": [round(taken, 2) for taken in seconds[impl]],
            "peak_memory_mib": round(statistics.median(peaks[impl])),
            "times_faster": round(slowest / statistics.median(seconds[impl]), 2),
        }
        for impl in impls
    ]
    for row in measured:
        times = f"{row['times_faster']} times as fast"
        print(row["impl"], row["seconds"], "s,", row["peak_memory_mib"], "MiB,", times)
    print(results.upsert(measured, device, results.FOLDER / "questions"))


if __name__ == "__main__":
    main()
