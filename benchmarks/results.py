"""Rows of measurements, one JSON object a line, replaced by key."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
KEY = ("op", "impl", "shape", "dtype", "device", "torch")


def device_name(threads: int) -> str:
    """Such as "cpu-2-threads-x86_64"."""
    return f"cpu-{threads}-threads-{platform.machine()}"


def upsert(rows: list[dict[str, Any]], device: str, folder: Path = FOLDER) -> Path:
    """Writes rows into the device's file; rows of the same key are replaced, others stay."""
    path = folder / f"{device}.jsonl"
    present = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    merged = {json.dumps([row[name] for name in KEY]): row for row in [*present, *rows]}
    text = "".join(json.dumps(row) + "\n" for row in merged.values())
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
    return path
