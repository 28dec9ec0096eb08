"""Rows of measurements, one JSON object a line, replaced by key."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"
KEY = ("op", "impl", "shape", "dtype", "device", "torch", "triton")


def device_name(device: str, threads: int) -> str:
    """Such as "cpu-2-threads-x86_64" or "nvidia-h100-80gb-hbm3"."""
    if device == "cuda":
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())
    return f"cpu-{threads}-threads-{platform.machine()}"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def upsert(rows: list[dict[str, Any]], device: str, folder: Path = FOLDER) -> Path:
    """Writes rows into the device's file; rows of the same key are replaced, others stay."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{device}.jsonl"
    present = read(path) if path.exists() else []
    merged = {json.dumps([row.get(name) for name in KEY]): row for row in [*present, *rows]}
    text = "".join(json.dumps(row) + "\n" for row in merged.values())
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
    return path
