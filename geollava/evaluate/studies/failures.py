"""The worst replies on one page, with what the model looked at."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from geollava.common.boxes import Box, boxes_in
from geollava.common.outputs import write_text
from geollava.common.pages import render_page
from geollava.evaluate.benchmark import Row
from geollava.evaluate.models.answerer import Answerer
from geollava.evaluate.predictions import Prediction
from geollava.evaluate.report import percent, title
from geollava.evaluate.results_folder import read_results
from geollava.evaluate.rows import Data, Example
from geollava.imagery import Scene

WIDTH = 760  # pixels of a picture on the page
CLOSE_UP = 240  # pixels of an image around a box


def write_failures(
    folder: Path,
    data: Data,
    answerer: Answerer,
    count: int,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """`failures.html` in a folder of results: wrong replies, the surest first.

    Args:
        data, answerer: as the evaluation had them.
        count: rows on the page.
        progress: called with (pictures done, pictures in all).

    Raises:
        ValueError: no finished evaluation there; other data than it had.
    """
    results, predictions = read_results(folder)
    if data.digest() != results["protocol"]["data"]:
        raise ValueError(f"{data.source} is not the data of {folder}, which had other rows")
    answered = [prediction for prediction in predictions if prediction.answered]
    wrong = sorted((made for made in answered if made.credit < 1), key=badness)
    shown = wrong[:count]
    drawn: dict[tuple[Any, ...], list[str]] = {}
    articles = []
    for done, prediction in enumerate(shown, start=1):
        row = data.rows[prediction.number]
        boxes = boxes_in(str(row.get("question")))
        key = (prediction.images, *boxes)
        if key not in drawn:
            drawn[key] = pictures(data, answerer, prediction, boxes)
        articles.append(Article(prediction, row, drawn[key]))
        if progress is not None:
            progress(done, len(shown))
    path = folder / "failures.html"
    write_text(path, page(results, answered, wrong, articles))
    return path


def badness(prediction: Prediction) -> tuple[float, float, int]:
    return prediction.credit, -prediction.confidence, prediction.number


def pictures(data: Data, answerer: Answerer, prediction: Prediction, boxes: list[Box]) -> list[str]:
    """Overviews and close-ups of a row's images, as URLs that hold them."""
    example = Example(prediction.number, data.rows[prediction.number], prediction.images, None)
    with data.open(example) as scenes:
        return [
            data_url(picture)
            for scene in scenes
            for picture in (overview(answerer, scene, boxes), *closeups(scene, boxes))
        ]


def overview(answerer: Answerer, scene: Scene, boxes: list[Box]) -> Image.Image:
    """The whole image with its kept tokens, and the boxes that the question names."""
    picture = answerer.overlay(scene).convert("RGB")
    scale = picture.width / scene.size[0]
    outline(picture, [tuple(edge * scale for edge in box) for box in boxes], 6)  # type: ignore[misc]
    picture.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
    return picture


def closeups(scene: Scene, boxes: list[Box]) -> list[Image.Image]:
    """What small boxes hold, pixel by pixel, with their surroundings."""
    pictures = []
    width, height = scene.size
    for x1, y1, x2, y2 in boxes:
        across, along = (round((a + b) / 2) for a, b in ((x1, x2), (y1, y2)))
        left = min(max(across - CLOSE_UP // 2, 0), max(width - CLOSE_UP, 0))
        top = min(max(along - CLOSE_UP // 2, 0), max(height - CLOSE_UP, 0))
        if max(x2 - x1, y2 - y1) > CLOSE_UP or not (0 <= across < width and 0 <= along < height):
            continue
        rows = scene.read_image(top, min(top + CLOSE_UP, height), 1)
        picture = rows.crop((left, 0, min(left + CLOSE_UP, width), rows.height))
        outline(picture, [(x1 - left, y1 - top, x2 - left, y2 - top)], 2)
        pictures.append(picture.resize((2 * picture.width, 2 * picture.height)))
    return pictures


def outline(picture: Image.Image, boxes: list[Box], margin: int) -> None:
    pen = ImageDraw.Draw(picture)
    for left, top, right, bottom in boxes:
        if left <= right and top <= bottom:
            corners = (left - margin, top - margin, right + margin, bottom + margin)
            pen.rectangle(corners, outline="#ff2d55", width=margin)


def data_url(picture: Image.Image) -> str:
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()


@dataclass(frozen=True)
class Option:
    """A choice on the page, or the answer where a row has no choices.

    Attributes:
        style: "right", "wrong" or "". chosen: the reply names it.
    """

    text: str
    style: str
    chosen: bool


@dataclass(frozen=True)
class Article:
    """A reply on the page; `pictures` are URLs."""

    prediction: Prediction
    row: Row
    pictures: list[str]

    @property
    def question(self) -> str:
        return str(self.row.get("question", ""))

    @property
    def options(self) -> list[Option]:
        answer, understood = str(self.prediction.answer), self.prediction.understood
        named = understood if isinstance(understood, list) else []
        options = []
        for option in self.row.get("multi-choice options") or []:
            letter = str(option).strip("(")[:1]
            right, chosen = letter in answer, letter in named
            style = "right" if right else "wrong" if chosen else ""
            options.append(Option(str(option), style, chosen))
        return options or [Option(answer, "right", chosen=False)]


def page(
    results: dict[str, Any],
    answered: list[Prediction],
    wrong: list[Prediction],
    articles: list[Article],
) -> str:
    asked = Counter(prediction.subtask for prediction in answered)
    failed = Counter(prediction.subtask for prediction in wrong)
    subtasks = sorted(asked, key=lambda subtask: -failed[subtask] / asked[subtask])
    return render_page(
        __package__,
        "failures.html.jinja",
        heading=f"{title(results)}: {results['protocol']['model']}",
        answered=len(answered),
        wrong=len(wrong),
        micro=percent(results["micro"]),
        method=results["protocol"]["method"],
        subtasks=[(subtask, failed[subtask], asked[subtask]) for subtask in subtasks],
        articles=articles,
    )
