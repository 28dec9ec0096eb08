"""Figures of the web page: its limits, and what `benchmarks/app.py` measured."""

from __future__ import annotations

from typing import Any

from figures import TWO_THREADS, figure, milliseconds, row, seconds
from geollava.app.limits import Limits

LIMITS = Limits()


def measured_page() -> dict[str, Any]:
    return row(f"app/{TWO_THREADS}", op="web page")


@figure
def app_upload() -> str:
    return f"{LIMITS.upload_bytes / 2**20:,.0f} MiB"


@figure
def app_pixels() -> str:
    return f"{LIMITS.pixels / 1e6:,.0f} megapixels"


@figure
def app_viewers() -> str:
    return str(LIMITS.viewers)


@figure
def app_waiting() -> str:
    return str(LIMITS.waiting)


@figure
def app_idle() -> str:
    return f"{LIMITS.idle_seconds / 60:.0f} minutes"


@figure
def app_side() -> str:
    width, height = measured_page()["shape"]
    return f"{width:,} × {height:,} pixels"


@figure
def app_users() -> str:
    return str(measured_page()["impl"])


@figure
def app_first_view() -> str:
    return seconds(measured_page()["first_view_seconds_jpeg"])


@figure
def app_tile() -> str:
    return milliseconds(measured_page()["tile_p95_ms_jpeg"])


@figure
def app_tile_together() -> str:
    return milliseconds(measured_page()["tile_p95_ms_together"])


@figure
def app_memory() -> str:
    return f"{measured_page()['memory_mib'] / 1024:.1f} GiB"
