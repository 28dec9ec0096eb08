"""What the tokens of the objects that are asked about are worth, against as many random ones.

Only questions that name a box [x1, y1, x2, y2] in image pixels are asked, three times: with all
kept tokens, without those that lie in the box, and without as many others drawn by lot (a pilot
study of arXiv 2505.21375).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geollava.answering.overlay import canvas_grid
from geollava.common.outputs import written_whole
from geollava.evaluate import report
from geollava.evaluate.benchmark import Benchmark
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.models.answerer import Answerer, Reply, Seen
from geollava.evaluate.models.geollava_model import GeoLlavaAnswerer
from geollava.evaluate.processes import Processes
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from geollava.evaluate.scores import difference
from geollava.evaluate.studies.failures import read_results
from geollava.evaluate.studies.sweep import graded_lines
from geollava.imagery import Scene, image_box
from geollava.model.token_reduction import ReducedTokens
from geollava.scenes import CHOICES_FOLLOW
from geollava.training.rows import Box, boxes_in

CONDITIONS = ("whole", "without objects", "without random")


def about_boxes(benchmark: Benchmark) -> Benchmark:
    """The benchmark, of its questions those that name a box."""
    return replace(
        benchmark,
        how_to="questions must name a box [x1, y1, x2, y2] in image pixels, as those in boxes.json "
        "of geollava scenes do",
        belongs=lambda row: benchmark.belongs(row) and bool(boxes_in(str(row.get("question")))),
    )


@dataclass
class SeenScene:
    """A scene's size and canvas in pixels (width, height), and its kept tokens."""

    size: tuple[int, int]
    canvas_size: tuple[int, int]
    kept: ReducedTokens


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
        model = cls(answerer.name, answerer.model, answerer.processor)
        model.weights = answerer.weights
        return model

    def see(self, scenes: Sequence[Scene]) -> Seen:
        parts = []
        for scene in scenes:
            tokens = self.encode(scene)
            parts.append(SeenScene(scene.size, tokens.canvas_size, tokens.kept))
        return Seen(parts)

    @torch.inference_mode()
    def prepare(self, seen: Seen, prompt: str, max_new_tokens: int) -> Any:
        features, dropped = [], 0
        boxes = boxes_in(prompt.split(CHOICES_FOLLOW)[0])  # of the question, not of its choices
        for scene in seen.content:
            inside = tokens_in(boxes, scene.size, scene.canvas_size, scene.kept)
            mask = remaining(self.condition, inside, prompt)
            features.append(self.model.project(scene.kept.features)[mask.flatten()])
            dropped += int((~mask).sum())
        ids = self.tokenize(prompt, list(map(len, features)), max_new_tokens)
        return ids, torch.cat(features), dropped

    @torch.inference_mode()
    def ask(self, seen: Seen, prepared: list[Any], max_new_tokens: int) -> list[Reply]:
        """One by one: questions share no tokens here."""
        replies = []
        for ids, features, dropped in prepared:
            embeds = self.model.embed_prompt(ids[None].to(self.model.device), features)
            mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
            inputs = {"inputs_embeds": embeds, "attention_mask": mask}
            inputs["eos_token_id"] = self.tokenizer.eos_token_id
            (reply,) = self.generate(inputs, 0, max_new_tokens)
            replies.append(replace(reply, dropped=dropped))
        return replies

    def protocol(self, *, blind: bool) -> dict[str, Any]:
        return super().protocol(blind=blind) | {"condition": self.condition}


def tokens_in(
    boxes: Sequence[Box],
    size: tuple[int, int],
    canvas_size: tuple[int, int],
    kept: ReducedTokens,
) -> Tensor:
    """[C, K] bool: which kept tokens stand in a cell that one of the boxes touches.

    Args:
        boxes: in pixels of the image. size, canvas_size: (width, height) in pixels.
    """
    assert kept.grid_size is not None
    rows, cols = kept.grid_size
    crops = len(kept.assignment)
    crop_cols = canvas_grid(crops, canvas_size)[1]
    cell = canvas_size[0] / (crop_cols * cols)
    crop = torch.arange(crops)[:, None]
    places = kept.keep_indices.cpu()
    x = (crop % crop_cols * cols + places % cols) * cell
    y = (crop // crop_cols * rows + places // cols) * cell
    left, top, right, _ = image_box(size, canvas_size)
    scale = (right - left) / size[0]
    inside = torch.zeros_like(places, dtype=torch.bool)
    for x1, y1, x2, y2 in boxes:
        across = (x < left + x2 * scale) & (x + cell > left + x1 * scale)
        along = (y < top + y2 * scale) & (y + cell > top + y1 * scale)
        inside |= across & along
    return inside & kept.valid.cpu()


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
        results = evaluate(data, model, folder, options, Processes(), progress)
        assert results is not None
        lines = read_results(folder)[1]
        dropped = [line["dropped"] for line in lines if "dropped" in line]
        row = {
            "condition": condition,
            "micro": results["micro"],
            "interval": results["intervals"]["micro"],
            "dropped_tokens": sum(dropped) / len(dropped),
            "questions_that_lost_any": sum(count > 0 for count in dropped) / len(dropped),
        }
        graded = graded_lines(lines)
        if condition == CONDITIONS[0]:
            first, base = results, graded
        else:
            gap, spread = difference(graded, base, data.benchmark.subtasks, "micro", options.seed)
            row |= {"difference": gap, "difference_interval": spread}
        rows.append(row)
    table = {
        "title": report.title(first),
        "questions": first["rows"]["answered"],
        "scenes": first["scenes"],
        "chance": first["chance"]["micro"],
        "conditions": rows,
        "protocol": first["protocol"],
    }
    with written_whole(out / "ablation.md") as partial:
        partial.write_text(markdown(table), encoding="utf-8")
    with written_whole(out / "ablation.png") as partial:
        plot(table, partial)
    with written_whole(out / "ablation.json") as partial:
        partial.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return table


def markdown(table: dict[str, Any]) -> str:
    lines = [
        f"# {table['title']}: {table['protocol']['model']}, tokens left out",
        "",
        f"{table['questions']:,} questions that name a box, about {table['scenes']:,} images; "
        "micro score in percent with 95 % bootstrap intervals by image; chance "
        f"{report.percent(table['chance'])}." + report.few_images(table["scenes"]),
        "",
        "| asked | score | difference | tokens left out per question | questions that lost any |",
        "|---|---|---|---|---|",
    ]
    for row in table["conditions"]:
        lines.append(
            f"| {row['condition']} | {report.with_interval(row['micro'], row['interval'])} "
            f"| {report.gap(row)} | {row['dropped_tokens']:.1f} "
            f"| {row['questions_that_lost_any']:.0%} |"
        )
    lines += ["", "## Protocol", "| | |", "|---|---|"]
    lines += [
        f"| {name} | {report.cell(value)} |"
        for name, value in table["protocol"].items()
        if name != "condition"
    ]
    return "\n".join(lines) + "\n"


def plot(table: dict[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(table["conditions"]):
        value = 100 * row["micro"]
        edges = [[reach] for reach in report.whisker(row["micro"], row["interval"])]
        axes.bar(place, value, color=report.MEASURED, width=0.6, yerr=edges, capsize=3)
    axes.axhline(100 * table["chance"], color=report.CHANCE, ls=":", label="chance")
    names = [f"{row['condition']}\n-{row['dropped_tokens']:.1f}" for row in table["conditions"]]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("kept tokens (mean number left out per question)")
    axes.set_ylabel("correct, %")
    axes.set_title(f"{table['title']}: questions that name a box", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
