"""Figures of the shipped model: what `examples/small_model/score.sh` wrote."""

from __future__ import annotations

from typing import Any

from figures import ROOT, figure, measured, percent, result, table


def cell(name: str) -> dict[str, Any]:
    [found] = [cell for cell in result("small_model/sweep")["cells"] if cell["cell"] == name]
    return dict(found)


def score(value: float, interval: list[float]) -> str:
    low, high = (f"{100 * edge:.1f}" for edge in interval)
    return f"{percent(value)} [{low}, {high}]"


@figure
def demonstration_size() -> str:
    files = (ROOT / "geollava" / "small_model").iterdir()
    return f"{sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.0f} MB"


@figure
def demonstration_score() -> str:
    found = cell("background_anchored-24")
    return score(found["score"], found["interval"])


@figure
def demonstration_divprune() -> str:
    return percent(cell("divprune-24")["score"])


@figure
def demonstration_random() -> str:
    return percent(cell("random-24")["score"])


@figure
def demonstration_blind() -> str:
    return percent(cell("blind")["score"])


@figure
def demonstration_chance() -> str:
    return percent(result("small_model/sweep")["chance"])


@figure
def demonstration_default_scale() -> str:
    found = result("small_model/default_scale")
    return score(found["macro"], found["intervals"]["macro"])


@measured
def demonstration() -> str:
    """Right answers by method and budget."""
    body = []
    for found in result("small_model/sweep")["cells"]:
        name, _, budget = found["cell"].rpartition("-")
        body.append(
            (
                f"`{name}`" if name else "blind: no image",
                budget if name else "-",
                f"{found['tokens']:,.0f}",
                score(found["score"], found["interval"]),
            )
        )
    return table(("method", "kept per crop", "visual tokens", "right [95 % interval]"), body)
