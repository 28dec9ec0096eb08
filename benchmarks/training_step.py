"""One training step of the shipped model on an 8K scene, every part learning: seconds and memory.

`geollava train` in a process of its own, loading included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import yaml

from benchmarks import results
from geollava.model.default_model import default_checkpoint

RATES = {"vision_tower": 1e-5, "projector": 1e-4, "affinity_head": 1e-4, "language_model": 1e-4}


def geollava(*arguments: object) -> None:
    command = [sys.executable, "-m", "geollava", *map(str, arguments)]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=8064, help="of the square scene, in pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = f"--first-seed 1 --count 1 --size {options.side} --scale 1.3 --part train"
        geollava("scenes", folder / "scenes", *drawn.split())
        config = {
            "model": str(default_checkpoint()),
            "data": {"files": [str(folder / "scenes" / "train.json")], "decode_images": False},
            "output": str(folder / "run"),
            "parts": RATES,
            "assignment": "straight_through",
            "max_steps": 1,
        }
        (folder / "train.yaml").write_text(yaml.safe_dump(config))
        start = time.perf_counter()
        geollava("train", folder / "train.yaml")
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024  # of the largest child
    device = results.device_name("cpu", torch.get_num_threads())
    row = {
        "op": "training step",
        "impl": "ours",
        "shape": [options.side, options.side],
        "dtype": "float32",
        "device": device,
        "torch": torch.__version__,
        "triton": None,
        "seconds": round(seconds, 1),
        "peak_memory_mib": peak,
    }
    print(f"{seconds:.0f} s, {peak:,} MiB")
    print(results.upsert([row], device, results.FOLDER / "training_step"))


if __name__ == "__main__":
    main()
