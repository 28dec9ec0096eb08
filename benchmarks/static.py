"""`make static`: what every kernel takes of a GPU and asks of its memory, without a GPU.

Kernels are compiled for each architecture and read off the machine code; bytes are counted in
Triton's interpreter at the GPU's block sizes. Rows are compared with those in `results/static/`:
one that is worse by more than a tenth fails. docs/how-it-works/static.md explains them.

    python benchmarks/static.py                      # the gate
    python benchmarks/static.py --update             # write the rows
    python benchmarks/static.py --update "a reason"  # needed where a row is worse
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kernels import gate, predict
from benchmarks.kernels.architectures import ARCHITECTURES, Architecture
from tokenprune.ops.common.launch import nearest

ROOT = Path(__file__).resolve().parent.parent
DTYPES = ("bfloat16", "float32")
CODE = (
    "registers",
    "shared_bytes",
    "spilled_bytes",
    "local_memory_instructions",
    "load_bits",
    "barriers",
    "shuffles",
    "tensor_core_instructions",
    "fused_multiply_adds",
    "instructions",
)
PREDICTED_ON = "sm_90"


def run_module(name: str, *arguments: str, given: str = "", interpret: bool) -> str:
    """What a module of `benchmarks.kernels` prints, in a process with or without interpreter."""
    environment = os.environ | {
        "TRITON_INTERPRET": str(int(interpret)),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.kernels.{name}", *arguments],
        input=given,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(f"{name} {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def measure(architectures: Iterable[Architecture] = ARCHITECTURES) -> list[gate.Row]:
    """The rows of all kernels, and of each operator's kernels together."""
    architectures = tuple(architectures)
    configs = sorted({nearest(one.capability) for one in architectures})
    pairs = [(name, dtype) for name in configs for dtype in DTYPES]
    with ThreadPoolExecutor(2) as pool:
        printed = pool.map(lambda pair: run_module("record", *pair, interpret=True), pairs)
        recorded = dict(zip(pairs, printed, strict=True))

        def compiled(one: Architecture) -> str:
            given = "".join(recorded[nearest(one.capability), dtype] for dtype in DTYPES)
            return run_module("compiled", str(one.capability), given=given, interpret=False)

        results = list(pool.map(compiled, architectures))
    rows = []
    for architecture, text in zip(architectures, results, strict=True):
        rows += rows_of([json.loads(line) for line in text.splitlines()], architecture)
    return rows


def rows_of(records: list[dict[str, Any]], architecture: Architecture) -> list[gate.Row]:
    """A row for each kernel; after an operator's last one, a row for all of them together."""
    rows = []
    for at, record in enumerate(records):
        key = row_key(record, architecture)
        code = record["code"]
        blocks = architecture.blocks_per_sm(code["registers"], code["shared_bytes"], code["warps"])
        row = key | {name: code[name] for name in CODE} | {"blocks_per_sm": blocks}
        row |= {"warps": code["warps"], "bytes": per_crop(record)}
        rows.append(row | times(architecture, predict.predicted(record, blocks)))
        last = at + 1 == len(records) or group(records[at + 1]) != group(record)
        if last:
            own = [one for one in rows if one["kernel"] and group(one) == group(record)]
            rows.append(total(own, record, architecture))
    return rows


def group(record: dict[str, Any]) -> tuple[str, str]:
    return record["operator"], record["dtype"]


def row_key(record: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Constants that say which form of the kernel it is; block sizes may change within a row."""
    forms = {name: value for name, value in record["constants"].items() if name in FORMS}
    return {
        "triton": importlib.metadata.version("triton"),
        "architecture": architecture.name,
        "dtype": record["dtype"],
        "operator": record["operator"],
        "kernel": record["kernel"].split(":")[1],
        "constants": forms,
    }


FORMS = ("FUSED", "MERGE", "RAGGED", "WEIGHTED")


def per_crop(record: dict[str, Any]) -> dict[str, int]:
    """Bytes by role that a kernel asks of global memory for one crop."""
    roles = ("features", "weights", "scratch")
    return {role: round(record["bytes"].get(role, 0) / record["crops"]) for role in roles}


def times(architecture: Architecture, prediction: dict[str, Any]) -> dict[str, Any]:
    """Predicted for one GPU alone; measured is for one that is at hand."""
    known = architecture.name == PREDICTED_ON
    return {"predicted": prediction if known else None, "measured": None}


def total(kernels: list[gate.Row], record: dict[str, Any], architecture: Architecture) -> gate.Row:
    """All kernels of an operator together."""
    asked = {role: sum(row["bytes"][role] for row in kernels) for role in kernels[0]["bytes"]}
    crops = record["crops"]
    row = row_key(record, architecture) | {"kernel": None, "constants": {}, "bytes": asked}
    row["times_features"] = round(sum(asked.values()) * crops / record["feature_bytes"], 3)
    row["times_least"] = round(sum(asked.values()) * crops / record["least_bytes"], 3)
    microseconds = [one["predicted"]["us"] for one in kernels if one["predicted"]]
    return row | times(architecture, {"us": round(sum(microseconds), 1), "bound": None})


def pinned() -> str:
    """The release of Triton that CI installs: its rows must be there."""
    found = re.search(r"^triton==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("constraints.txt pins no triton")
    return found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", nargs="?", const="", metavar="REASON", help="write the rows")
    options = parser.parse_args()
    triton = importlib.metadata.version("triton")
    path = gate.path_of(triton)
    committed = gate.read(path) if path.exists() else []
    rows = measure()
    if options.update is not None:
        gate.write(gate.updated(rows, committed, options.update), path)
        print(f"{len(rows)} rows written to {path.relative_to(ROOT)}")
    elif not committed and triton != pinned():
        print(f"triton {triton} is not the pinned {pinned()}: {len(rows)} rows, not compared")
    elif failed := gate.failures(rows, committed):
        raise SystemExit("\n".join(["kernels are worse than their committed rows:", *failed]))
    else:
        print(f"{len(rows)} rows, none worse than committed")


if __name__ == "__main__":
    main()
