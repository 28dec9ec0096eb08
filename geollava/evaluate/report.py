"""Results as JSON, as Markdown and as a plot beside published figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geollava.common.outputs import write_json, write_text
from geollava.common.plots import CHANCE, MEASURED, PUBLISHED, new_figure, save_figure
from geollava.common.tables import property_table, table
from geollava.moved import names_of

NAMES = {"macro": "macro", "macro_present": "macro (subtasks with rows)"}
FEW = 20  # images

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)


def write(results: dict[str, Any], out: Path) -> None:
    """`results.md`, `.png` and `.json`."""
    write_report(out, "results", markdown(results), plot(results), results)


def write_report(out: Path, name: str, text: str, figure: Any, value: Mapping[str, Any]) -> None:
    """A result as Markdown, as a plot and as JSON: `out/name.md`, `.png` and `.json`."""
    write_text(out / f"{name}.md", text)
    save_figure(out / f"{name}.png", figure)
    write_json(out / f"{name}.json", value)  # at last: a folder with it has the others


def headline(results: dict[str, Any]) -> str:
    """The macro score that this data allows: over all subtasks, or over those that have rows."""
    return "macro" if is_complete(results) else "macro_present"


def is_complete(results: dict[str, Any]) -> bool:
    return all(results["rows_per_subtask"].values())


def title(results: dict[str, Any]) -> str:
    """The benchmark, if this is all of it; other data can have its form."""
    if is_complete(results):
        return results["title"]
    source = Path(results["protocol"]["source"])
    return f"{source.parent.name}/{source.name}, in the form of {results['title']}"


def few_images(count: int) -> str:
    if count == 1:
        return " One image gives no interval."
    return f" With {count} images an interval says little." if count < FEW else ""


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def whisker(value: float, interval: list[float] | None) -> tuple[float, float]:
    """How far an interval reaches below and above a value, in percent; no way without one."""
    low, high = interval or (value, value)
    return 100 * (value - low), 100 * (high - value)


def gap(row: dict[str, Any]) -> str:
    """A row's difference to another in points, with its interval; "-" where it has none."""
    if "difference" not in row:
        return "-"
    text = f"{100 * row['difference']:+.1f}"
    if row["difference_interval"] is None:
        return text
    low, high = (100 * edge for edge in row["difference_interval"])
    return f"{text} [{low:+.1f}, {high:+.1f}]"


def with_interval(value: float, interval: list[float] | None) -> str:
    if interval is None:
        return percent(value)
    return f"{percent(value)} [{percent(interval[0])}, {percent(interval[1])}]"


def markdown(results: dict[str, Any]) -> str:
    rows, protocol = results["rows"], results["protocol"]
    intervals, chance = results["intervals"], results["chance"]
    present = sum(count > 0 for count in results["rows_per_subtask"].values())
    names = {
        "micro": "micro, over rows",
        "macro": f"macro, over all {len(results['per_subtask'])} subtasks",
    }
    if not is_complete(results):
        names["macro_present"] = f"macro, over the {present} subtasks that have rows"
    scores = [
        (text, with_interval(results[name], intervals[name]), percent(chance[name]))
        for name, text in names.items()
    ]
    scores += [(name, percent(value), "-") for name, value in results["other_scores"].items()]
    lines = [
        f"# {title(results)}: {protocol['model']}",
        "",
        f"{rows['answered']:,} of {rows['asked']:,} rows answered, about {results['scenes']:,} "
        f"images; {rows['bad']:,} bad rows ({rows['on_bad_rows']})."
        + few_images(results["scenes"]),
        "",
        *table(("score, %", "95 % interval by image", "chance"), scores),
        "",
        *table(("subtask", "rows", "correct, %", "chance"), subtask_rows(results)),
    ]
    if results["bad_rows"]:
        bad = [(row["row"], str(row["index"]), row["problem"]) for row in results["bad_rows"]]
        lines += ["", "## Bad rows", *table(("row", "index", "problem"), bad)]
    lines += ["", "## Protocol", *property_table(protocol | costs(results))]
    if results["published"]:
        lines += ["", f"## Published figures ({results['published_figure']}), not measured here"]
        if not is_complete(results):
            lines.append("This data is not the whole benchmark: they do not compare with it.")
        lines += ["", *table(("model", "%"), results["published"].items())]
    return "\n".join(lines) + "\n"


def subtask_rows(results: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for name, count in results["rows_per_subtask"].items():
        if count == 0:
            rows.append((name, 0, "-", "-"))
            continue
        interval = results["intervals"]["per_subtask"][name]
        score = with_interval(results["per_subtask"][name], interval)
        rows.append((name, count, score, percent(results["chance_per_subtask"][name])))
    return rows


def costs(results: dict[str, Any]) -> dict[str, str]:
    """Tokens and seconds of a question."""
    found = {
        f"{name.replace('_', ' ')}, mean per question": f"{value:,.0f}"
        for name, value in results["tokens"].items()
        if value is not None
    }
    seconds = results["seconds"]
    if seconds["rows"]:
        encode, answer = (seconds[name] / seconds["rows"] for name in ("encode", "answer"))
        found["seconds per question"] = (
            f"{encode:.2f} to encode (an image is encoded once for all its questions), "
            f"{answer:.2f} to answer"
        )
    return found


def plot(results: dict[str, Any]) -> Any:
    """A figure of the subtasks, and of the macro score beside published ones."""
    names = [name for name, count in results["rows_per_subtask"].items() if count]
    published = results["published"] if is_complete(results) else {}
    bars = len(names) + (len(published) + 2 if published else 1)
    figure = new_figure(10, 1.6 + 0.32 * bars)
    axes = figure.subplots()

    model = results["protocol"]["model"].rstrip("/").split("/")[-1]
    rows: list[tuple[str, float, Any, float | None, str]] = [
        (
            f"{name} ({results['rows_per_subtask'][name]})",
            results["per_subtask"][name],
            results["intervals"]["per_subtask"][name],
            results["chance_per_subtask"][name],
            MEASURED,
        )
        for name in names
    ]
    key = headline(results)
    macro = (results[key], results["intervals"][key], results["chance"][key], MEASURED)
    rows.append((f"macro, {model} (measured)", *macro))
    rows += [
        (f"macro, {name} (published)", value / 100, None, None, PUBLISHED)
        for name, value in published.items()
    ]
    for place, (_, value, interval, chance, color) in enumerate(rows):
        axes.barh(place, 100 * value, color=color, height=0.7)
        if interval is not None:
            low, high = (100 * abs(edge - value) for edge in interval)
            axes.errorbar(100 * value, place, xerr=[[low], [high]], color="#444", capsize=2, lw=1)
        if chance is not None:
            axes.plot([100 * chance] * 2, [place - 0.4, place + 0.4], color=CHANCE, ls=":", lw=1.6)
        axes.text(101, place, f"{100 * value:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("correct, %; whiskers: 95 % bootstrap by image; dotted: chance")
    blind = ", blind" if results["protocol"]["blind"] else ""
    method = results["protocol"]["method"] or "no token reduction"
    axes.set_title(f"{title(results)}\n{model}, {method}{blind}", fontsize=10)
    return figure
