"""The folder of an evaluation: its settings, what is finished, and its results.

While an evaluation runs, each process appends to a part file of its own; `finish` joins them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from geollava.common.outputs import write_json, write_text
from geollava.evaluate.predictions import Prediction, read_predictions
from tokenprune.version import __version__

SETTINGS, PREDICTIONS, RESULTS = "settings.json", "predictions.jsonl", "results.json"


def claim(out: Path, settings: dict[str, Any], *, working: bool) -> dict[str, Any]:
    """Makes the folder, or makes sure that what is in it came from the same settings.

    Args:
        working: this run adds to the folder.

    Returns:
        The settings with `made_with`: what each run that added something ran on.

    Raises:
        ValueError: it holds results of other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else settings
    makers = known.get("made_with", [])
    for name in {**settings, **known}.keys() - {"made_with"}:
        if known.get(name) != settings.get(name):
            raise ValueError(
                f"{out} holds results with {name} = {known.get(name)!r}, expected "
                f"{settings.get(name)!r}: remove it or write elsewhere"
            )
    if working and software() not in makers:
        makers = [*makers, software()]
        write_json(path, {**settings, "made_with": makers})
    return {**settings, "made_with": makers}


def software() -> dict[str, str | None]:
    """Versions, and the commit of the checkout that this runs from (null where it is installed)."""
    folder, commit = Path(__file__).resolve().parents[2], None
    if (folder / ".git").exists():
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        with suppress(OSError, subprocess.CalledProcessError):
            commit = subprocess.run(
                command, capture_output=True, check=True, encoding="utf-8"
            ).stdout
    return {
        "tokenprune-vlm": __version__,
        "commit": commit and commit.strip(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@contextmanager
def appending(out: Path, process: int) -> Iterator[Callable[[Iterable[Prediction]], None]]:
    """Gives what appends to a process's part file, and has it on the disk before it returns."""
    path = out / f"part-{process}.jsonl"
    if path.exists():  # a kill may have cut the last line
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    with path.open("a", encoding="utf-8") as file:

        def append(predictions: Iterable[Prediction]) -> None:
            file.writelines(prediction.to_line() for prediction in predictions)
            file.flush()
            os.fsync(file.fileno())

        yield append


def finished(out: Path) -> dict[int, Prediction]:
    """What any run has finished, by the row's number."""
    found: dict[int, Prediction] = {}
    for path in [out / PREDICTIONS, *part_files(out)]:
        if path.exists():
            for prediction in read_predictions(path):
                found.setdefault(prediction.number, prediction)
    return found


def finish(out: Path, predictions: Iterable[Prediction]) -> None:
    """Writes all predictions into one file in place of the part files."""
    # Seconds differ from run to run; all else is the same after a kill.
    lines = [replace(prediction, seconds=None).to_line() for prediction in predictions]
    write_text(out / PREDICTIONS, "".join(lines))
    for path in part_files(out):
        path.unlink()


def part_files(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.jsonl"))


def read_results(out: Path) -> tuple[dict[str, Any], list[Prediction]]:
    """Results of an evaluation and its predictions.

    Raises:
        ValueError: no finished evaluation there.
    """
    try:
        results = json.loads((out / RESULTS).read_text(encoding="utf-8"))
        return results, read_predictions(out / PREDICTIONS)
    except (OSError, ValueError) as error:
        raise ValueError(f"{out} must hold a finished evaluation: {error}") from error
