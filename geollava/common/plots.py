"""Figures without a display. matplotlib is imported late: it belongs to an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geollava.common.extras import install
from geollava.common.outputs import written_whole

MEASURED, PUBLISHED, CHANCE, BASELINE = "#d97706", "#9ca3af", "#111827", "#6b7280"


def require_matplotlib() -> None:
    """Raises ImportError, naming the extra, if matplotlib is missing; asked before long work."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            f"geollava evaluate needs the extra evaluate: {install('evaluate')}"
        ) from error


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure, its size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: Path, figure: Any) -> None:
    """Writes a figure, its axes open at the top and at the right."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=130)
