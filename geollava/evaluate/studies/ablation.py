"""What the tokens of the objects that are asked about are worth, against as many random ones.

Only questions that name a box [x1, y1, x2, y2] in image pixels are asked, three times: with all
kept tokens, without those that lie in the box, and without as many others drawn by lot (a pilot
study of arXiv 2505.21375).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geollava.answering.encoding import SceneTokens
from geollava.common.boxes import Box, boxes_in
from geollava.common.plots import CHANCE, MEASURED, new_figure
from geollava.common.tables import property_table, table
from geollava.evaluate import report
from geollava.evaluate.benchmark import Benchmark
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.models.answerer import Answerer, Reply, Seen
from geollava.evaluate.models.geollava_model import GeoLlavaAnswerer
from geollava.evaluate.processes import Processes
from geollava.evaluate.results_folder import read_results
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from geollava.evaluate.scores import difference
from geollava.imagery import Scene
from geollava.scenes.questions import CHOICES_FOLLOW

CONDITIONS = ("whole", "without objects", "without random")


def about_boxes(benchmark: Benchmark) -> Benchmark:
    """The benchmark, of its questions those that name a box."""
    return replace(
        benchmark,
        how_to="questions must name a box [x1, y1, x2, y2] in image pixels, as those in boxes.json "
        "of geollava scenes do",
        belongs=lambda row: benchmark.belongs(row) and bool(boxes_in(str(row.get("question")))),
    )


class AblatedModel(GeoLlavaAnswerer):
    """Our model, with tokens left out question by question.

    Attributes:
        condition: one of `CONDITIONS`.
    """

    condition = CONDITIONS[0]

    @classmethod
    def of(cls, answerer: Answerer) -> AblatedModel:
        """The same model. NotImplementedError for one of transformers."""
        if not isinstance(answerer, GeoLlavaAnswerer):
            raise NotImplementedError("tokens can be left out of models of this project alone")
        model = cls(answerer.name, answerer.session)
        model.weights = answerer.weights
        model.reduce(answerer.method, answerer.num_keep)
        return model

    def see(self, scenes: Sequence[Scene]) -> Seen:
        """The tokens of each scene; every question is shown others of them."""
        return Seen([self.encode(scene) for scene in scenes])

    def prepare(self, seen: Seen, prompt: str, max_new_tokens: int) -> Any:
        boxes = boxes_in(prompt.split(CHOICES_FOLLOW)[0])  # of the question, not of its choices
        parts, dropped = [], 0
        for tokens in seen.content:
            shown = remaining(self.condition, tokens_in(boxes, tokens), prompt)
            parts.append(replace(tokens, shown=shown.to(tokens.kept.features.device)))
            dropped += int((~shown).sum())
        held = self.session.hold(parts)
        return held, held.prepare(prompt, max_new_tokens), dropped

    def ask(self, seen: Seen, prepared: list[Any], max_new_tokens: int) -> list[Reply]:
        """One by one: questions share no tokens here."""
        replies = []
        for held, ids, dropped in prepared:
            (reply,) = held.reply([ids], max_new_tokens)
            held.close()
            replies.append(Reply(reply.text, reply.confidence, dropped=dropped))
        return replies

    def protocol(self, *, blind: bool) -> dict[str, Any]:
        return super().protocol(blind=blind) | {"condition": self.condition}


def tokens_in(boxes: Sequence[Box], tokens: SceneTokens) -> Tensor:
    """[C, K] bool: which kept tokens stand in a cell that one of the boxes touches.

    Args:
        boxes: (left, top, right, bottom) in pixels of the image.
    """
    places = tokens.kept.keep_indices.cpu().numpy()
    inside = np.zeros(places.shape, dtype=bool)
    for box in boxes:
        inside |= tokens.map.touched(places, box)
    return torch.from_numpy(inside) & tokens.kept.valid.cpu()


def remaining(condition: str, inside: Tensor, prompt: str) -> Tensor:
    """[C, K] bool: the tokens that a question is asked with, given those in its boxes."""
    if condition == "whole":
        return torch.ones_like(inside)
    if condition == "without objects":
        return ~inside
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
    rank = torch.rand(inside.numel(), generator=torch.Generator().manual_seed(seed))
    rank[inside.flatten()] = 2  # drawn among the others
    drawn = rank.argsort()[: int(inside.sum())]
    return torch.ones_like(inside).flatten().index_fill(0, drawn, False).view_as(inside)


def ablate(
    data: Data,
    model: AblatedModel,
    out: Path,
    options: Options,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Runs the three conditions, and writes `ablation.json`, `.md` and `.png`.

    Args:
        data: of a benchmark `about_boxes`.
        out: each condition has a folder in it, which is not computed again once it is finished.
    """
    rows: list[dict[str, Any]] = []
    for condition in CONDITIONS:
        model.condition = condition
        folder = out / "cells" / condition.replace(" ", "-")
        evaluated = evaluate(data, model, folder, options, Processes(), progress)
        assert evaluated is not None
        predictions = read_results(folder)[1]
        dropped = [made.dropped for made in predictions if made.dropped is not None]
        row = {
            "condition": condition,
            "micro": evaluated["micro"],
            "interval": evaluated["intervals"]["micro"],
            "dropped_tokens": sum(dropped) / len(dropped),
            "questions_that_lost_any": sum(count > 0 for count in dropped) / len(dropped),
        }
        graded = [prediction.graded() for prediction in predictions]
        if condition == CONDITIONS[0]:
            first, base = evaluated, graded
        else:
            gap, spread = difference(graded, base, data.benchmark.subtasks, "micro", options.seed)
            row |= {"difference": gap, "difference_interval": spread}
        rows.append(row)
    results = {
        "title": report.title(first),
        "questions": first["rows"]["answered"],
        "scenes": first["scenes"],
        "chance": first["chance"]["micro"],
        "conditions": rows,
        "protocol": first["protocol"],
    }
    report.write_report(out, "ablation", markdown(results), plot(results), results)
    return results


def markdown(results: dict[str, Any]) -> str:
    header = (
        "asked",
        "score",
        "difference",
        "tokens left out per question",
        "questions that lost any",
    )
    rows = [
        (
            row["condition"],
            report.with_interval(row["micro"], row["interval"]),
            report.gap(row),
            f"{row['dropped_tokens']:.1f}",
            f"{row['questions_that_lost_any']:.0%}",
        )
        for row in results["conditions"]
    ]
    protocol = results["protocol"]
    lines = [
        f"# {results['title']}: {protocol['model']}, tokens left out",
        "",
        f"{results['questions']:,} questions that name a box, about {results['scenes']:,} images; "
        "micro score in percent with 95 % bootstrap intervals by image; chance "
        f"{report.percent(results['chance'])}." + report.few_images(results["scenes"]),
        "",
        *table(header, rows),
        "",
        "## Protocol",
        *property_table({name: protocol[name] for name in protocol if name != "condition"}),
    ]
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any]) -> Any:
    """A figure of the score under each condition."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for place, row in enumerate(results["conditions"]):
        value = 100 * row["micro"]
        edges = [[reach] for reach in report.whisker(row["micro"], row["interval"])]
        axes.bar(place, value, color=MEASURED, width=0.6, yerr=edges, capsize=3)
    axes.axhline(100 * results["chance"], color=CHANCE, ls=":", label="chance")
    names = [f"{row['condition']}\n-{row['dropped_tokens']:.1f}" for row in results["conditions"]]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("kept tokens (mean number left out per question)")
    axes.set_ylabel("correct, %")
    axes.set_title(f"{results['title']}: questions that name a box", fontsize=10)
    axes.legend(frameon=False)
    return figure
