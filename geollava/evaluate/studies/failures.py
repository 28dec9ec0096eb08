"""The worst replies on one page, with what the model looked at."""

from __future__ import annotations

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from geollava.common.outputs import written_whole
from geollava.evaluate.models.answerer import Answerer
from geollava.evaluate.report import percent, title
from geollava.evaluate.rows import Data, Example
from geollava.evaluate.runner import PREDICTIONS, RESULTS, Line
from geollava.imagery import Scene
from geollava.training.rows import Box, boxes_in

WIDTH = 760  # pixels of a picture on the page
CLOSE_UP = 240  # pixels of an image around a box
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; color: #111; }
article { display: grid; grid-template-columns: 3fr 2fr; gap: 1.2rem; padding: 1.2rem 0;
  border-top: 1px solid #ddd; }
img { width: 100%; display: block; margin-bottom: .4rem; }
h2 { font-size: 1rem; margin: 0 0 .5rem; }
ul { list-style: none; padding: 0; }
.right { color: #15803d; font-weight: 600; }
.wrong { color: #b91c1c; }
small { color: #666; }
td, th { padding: .1rem .8rem .1rem 0; text-align: left; }
"""


def read_results(folder: Path) -> tuple[dict[str, Any], list[Line]]:
    """Results of an evaluation and its predictions.

    Raises:
        ValueError: no finished evaluation there.
    """
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        text = (folder / PREDICTIONS).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} must hold a finished evaluation: {error}") from error
    return results, [json.loads(line) for line in text.splitlines()]


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
    results, lines = read_results(folder)
    if data.digest() != results["protocol"]["data"]:
        raise ValueError(f"{data.source} is not the data of {folder}, which had other rows")
    answered = [line for line in lines if "problem" not in line]
    wrong = sorted((line for line in answered if line["credit"] < 1), key=badness)
    shown = wrong[:count]
    pictures: dict[str, list[str]] = {}
    articles = []
    for done, line in enumerate(shown):
        row = data.rows[line["row"]]
        example = Example(line["row"], row, tuple(line["images"]), None)
        boxes = boxes_in(str(row.get("question")))
        key = json.dumps([line["images"], boxes])
        if key not in pictures:
            with data.open(example) as scenes:
                pictures[key] = [
                    data_url(picture)
                    for scene in scenes
                    for picture in (overview(answerer, scene, boxes), *closeups(scene, boxes))
                ]
        articles.append(article(line, row, pictures[key]))
        if progress is not None:
            progress(done + 1, len(shown))
    path = folder / "failures.html"
    with written_whole(path) as partial:
        partial.write_text(page(results, answered, wrong, articles), encoding="utf-8")
    return path


def badness(line: Line) -> tuple[float, float, int]:
    return line["credit"], -line["confidence"], line["row"]


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


def article(line: Line, row: Any, pictures: list[str]) -> str:
    images = "".join(f'<img src="{picture}" alt="">' for picture in pictures)
    understood = line["understood"] if isinstance(line["understood"], list) else []
    options = []
    for option in row.get("multi-choice options") or []:
        letter = str(option).strip("(")[:1]
        right, chosen = letter in str(line["answer"]), letter in understood
        style = "right" if right else "wrong" if chosen else ""
        mark = " (chosen)" if chosen else ""
        options.append(f'<li class="{style}">{escape(option)}{mark}</li>')
    if not options:
        options.append(f'<li class="right">{escape(line["answer"])}</li>')
    return (
        f"<article><div>{images}</div><div><h2>{escape(row.get('question', ''))}</h2>"
        f"<ul>{''.join(options)}</ul><p>Reply: <q>{escape(line['reply'])}</q></p>"
        f"<p><small>{escape(line['subtask'])}; probability of the reply's first token "
        f"{line['confidence']:.2f}; row {line['row']}, index {escape(line['index'])}; "
        f"{escape(', '.join(line['images']))}</small></p></div></article>"
    )


def page(results: Any, answered: list[Line], wrong: list[Line], articles: list[str]) -> str:
    asked = Counter(line["subtask"] for line in answered)
    failed = Counter(line["subtask"] for line in wrong)
    table = "".join(
        f"<tr><td>{escape(subtask)}</td><td>{failed[subtask]} of {count}</td></tr>"
        for subtask, count in sorted(asked.items(), key=lambda item: -failed[item[0]] / item[1])
    )
    protocol = results["protocol"]
    heading = f"{title(results)}: {protocol['model']}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(heading)}</title>'
        f"<style>{STYLE}</style><h1>{escape(heading)}</h1>"
        f"<p>{len(wrong):,} of {len(answered):,} replies are not right (micro score "
        f"{percent(results['micro'])} %); the {len(articles)} of them that the model was surest of "
        f"are below. Tokens chosen by {escape(protocol['method'])}: those kept are framed, those "
        "merged into them pale, the rest dark; red: boxes that the question names.</p>"
        f"<table><tr><th>subtask</th><th>not right</th></tr>{table}</table>"
        f"{''.join(articles)}</html>\n"
    )


def escape(value: Any) -> str:
    return html.escape(str(value))
