"""The small model's language model: first lessons, in words.

    python examples/small_model/words.py WORDS_FOLDER

A scene's kept tokens are stood in for by sums of word embeddings ("car" + "red" + "desert"), so
that no pixel need be drawn: the language model finds out how questions are answered before it sees
an image. `join.py` then teaches the projector to speak in the same words.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts import CROP, Wording, build, kept_patches, split_crops
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from tower import label

from geollava.scenes import Question, Scene, Thing, describe, plan, training_row
from geollava.scenes.layout import NoRoomError, Planner, ask_shuffled
from geollava.scenes.questions import DESCRIBE, conversation, more_questions, prompt_of, varied
from geollava.scenes.scene import (
    COLORS,
    DIRECTIONS,
    KINDS,
    LAND_USES,
    PURPLE,
    VEHICLES,
    land_use_at,
)
from geollava.training.packs import join
from geollava.training.rows import turns_in
from geollava.training.tokens import sample_of, tokenize

SCALE = 1.3
WORDING_FILE = "wording.safetensors"
MOST = 10  # things of a small scene
BEGINNING = 0.4  # of the lessons: no slot is empty, no turn about words alone
NOISE = 0.2  # of a token, relative to a word
MOTIONS = ("moving", "standing still")
Turn = tuple[str, str]

console = Console(stderr=True, highlight=False)


def small_scene(seed: int) -> Scene:
    """Two crops, the upper half of 672 x 672 pixels, with few things."""
    make = Planner(seed, 672, SCALE, attempt=0)
    rng = make.rng
    scene = Scene(seed, 672, SCALE, tuple(make.choose(LAND_USES, 4)))

    def put(kind: str, where: tuple[Thing, float, float] | None = None, **more: Any) -> Thing:
        """Anywhere, or at some distance from a thing."""

        def near(spot: tuple[float, float]) -> bool:
            if spot[1] > CROP - 16 or where is None:
                return spot[1] < CROP - 16
            return where[1] < math.dist(spot, (where[0].x, where[0].y)) / SCALE < where[2]

        beside = None if where is None else (where[0].x, where[0].y)
        thing = make.thing(kind, make.place(near, beside), **more)
        scene.things.append(thing)
        return thing

    def ask(text: str, right: str, words: Any) -> None:
        wrong = make.choose([word for word in words if word != right], 3)
        ask_shuffled(make, scene, "", text, [right, *wrong])

    pad = put("helipad") if rng.random() < 0.4 else None
    fire = put("fire") if rng.random() < 0.4 else None
    if rng.random() < 0.7:
        vehicle = put(
            make.choose(VEHICLES, 1)[0],
            (pad, 26, 70) if pad else None,
            color=PURPLE,
            moving=rng.random() < 0.5,
        )
        ask("What kind of vehicle is purple?", vehicle.kind, VEHICLES)
        motion = MOTIONS[not vehicle.moving]
        ask("Is the purple vehicle moving or standing still?", motion, MOTIONS)
        if pad is not None and (label(scene)["from_helipad"] > 0).any():
            way = int(np.sign(vehicle.x - pad.x)), int(np.sign(vehicle.y - pad.y))
            name = list(DIRECTIONS)[list(DIRECTIONS.values()).index(way)]
            text = "Seen from the helipad, in which direction is the purple vehicle?"
            ask(text, name, DIRECTIONS)
    if pad is not None and (use := land_use_at(scene, pad)) is not None:
        ask("What is the land use around the helipad?", use, LAND_USES)
    if fire is not None:
        if (use := land_use_at(scene, fire)) is not None:
            ask("Something burns in this image. On which land use?", use, LAND_USES)
        color = make.choose(COLORS, 1)[0]
        put(make.choose(KINDS, 1)[0], (fire, 20, 28), color=COLORS[color])
        ask("What is the color of the object beside the fire?", color, COLORS)
    for _ in range(int(rng.integers(1, MOST + 1)) - len(scene.things)):
        put(make.choose(KINDS, 1)[0])
    return scene


def lesson(scene: Scene, rng: np.random.Generator, progress: float) -> list[Turn]:
    """Half a dozen turns about a small scene; later also one about words alone."""
    with_choices = max(0.0, 1.4 * progress - 0.5)
    more = [varied(question, rng) for question in more_questions(scene, rng)]
    counts = [question for question in more if question.choices[0].isdigit()]
    others = [question for question in more if not question.choices[0].isdigit()]
    others += [varied(question, rng) for question in 2 * scene.questions]
    turns = [(DESCRIBE, describe(scene))]
    chosen = [others[index] for index in rng.permutation(len(others))[:5]]
    chosen += [
        counts[index] for index in rng.permutation(len(counts))[: 1 + (progress > BEGINNING)]
    ]
    for question in chosen:
        if rng.random() < with_choices:
            turns.append((prompt_of(question), chr(65 + question.answer)))
        else:
            turns.append((question.text, question.choices[question.answer]))
    if progress < BEGINNING:
        return [turns[index] for index in rng.permutation(len(turns))]
    words = [*KINDS, *COLORS, *LAND_USES, *DIRECTIONS, *map(str, range(10))]
    some = tuple(words[index] for index in rng.permutation(len(words))[:4])
    which = int(rng.integers(4))
    turns.append(
        (prompt_of(Question("", f"Which is {some[which]}?", some, which)), chr(65 + which))
    )
    return [turns[index] for index in rng.permutation(len(turns))]


class Lessons:
    """What each step learns from: questions, answers and visual tokens in words."""

    def __init__(self, processor: Any, wording: Wording, tokens: int) -> None:
        self.processor, self.wording, self.tokens = processor, wording, tokens
        self.seed = 5 * 10**6

    def row(self, progress: float) -> tuple[Scene, int, list[Turn], np.random.Generator]:
        """A scene, its crops, and turns about it: small ones at first, whole ones more and more."""
        while True:
            self.seed += 1
            rng = np.random.default_rng([self.seed, 3])
            if rng.random() < 1.6 * progress - 0.7:
                size = int(rng.choice([672, 1008, 1344], p=[0.4, 0.2, 0.4]))
                scene = plan(self.seed, size, SCALE)
                turns = turns_of(training_row(scene, "")["conversations"])
                return scene, (size // CROP) ** 2, turns, rng
            try:
                scene = small_scene(self.seed)
            except NoRoomError:
                continue
            return scene, 2, lesson(scene, rng, progress), rng

    def visual_tokens(
        self, scene: Scene, crops: int, rng: np.random.Generator, progress: float
    ) -> Tensor:
        """[crops * num_keep, text width]"""
        labels = {name: split_crops(grid)[:crops] for name, grid in label(scene).items()}
        patches, valid = kept_patches(
            labels["thing"], self.processor.num_keep, rng, progress < BEGINNING
        )
        said = self.wording({name: grid.gather(1, patches) for name, grid in labels.items()})
        noise = NOISE * said.shape[2] ** -0.5 * torch.randn_like(said)
        return ((said + noise) * valid[..., None]).flatten(0, 1)

    def step(self, progress: float) -> tuple[dict[str, Any], list[Turn]]:
        """Some rows in one sequence, each blind to the others, and their turns."""
        samples, images, said = [], [], []
        filled = 0
        while filled < self.tokens:
            scene, crops, turns, rng = self.row(progress)
            tokens = tokenize(self.processor, turns_in(conversation(turns)))
            kept = crops * self.processor.num_keep
            samples.append(sample_of(tokens, self.processor.image_token_id, [kept]))
            images.append(self.visual_tokens(scene, crops, rng, progress))
            said += turns
            filled += len(samples[-1]["input_ids"])
        return join(samples) | {"image_features": torch.cat(images)}, said


def correct(logits: Tensor, batch: dict[str, Any], turns: list[Turn]) -> list[tuple[str, bool]]:
    """(question, whether its whole answer is the likeliest) of each turn."""
    right = (logits.argmax(1) == batch["labels"][0]).tolist()
    places = batch["logits_to_keep"].tolist()
    starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1] + 1]
    ends = [*starts[1:], len(places)]
    return [
        (question, all(right[start:end]))
        for (question, _), start, end in zip(turns, starts, ends, strict=True)
    ]


def turns_of(conversation: list[dict[str, str]]) -> list[Turn]:
    said = [turn["value"].removeprefix("<image>\n") for turn in conversation]
    return list(zip(said[::2], said[1::2], strict=True))


def teach(
    model: Any,
    lesson_at: Callable[[float], tuple[dict[str, Any], list[Turn]]],
    steps: int,
    learning_rate: float,
    save: Callable[[], None],
) -> None:
    """The language model alone learns; says now and then what it answers right.

    Args:
        lesson_at: the inputs of a step and the turns in them, for the share of steps done.
        save: called where that is said, and at the end.
    """
    parameters = [*model.model.layers.parameters(), *model.model.norm.parameters()]
    parameters += model.get_input_embeddings().parameters()
    optimizer = torch.optim.AdamW(parameters, learning_rate, (0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, steps, pct_start=0.05, cycle_momentum=False
    )
    start, losses = time.perf_counter(), []
    scores: dict[str, list[bool]] = defaultdict(list)
    for step in range(1, steps + 1):
        inputs, turns = lesson_at(step / steps)
        output = model(**inputs)
        optimizer.zero_grad()
        output.loss.backward()
        losses.append(output.loss.item())
        for question, right in correct(output.logits[0], inputs, turns):
            kind = "(ABCD) " if "choices" in question else ""
            scores[kind + question.split("?")[0].replace(" burns in", "?")[:24]].append(right)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            seconds = time.perf_counter() - start
            console.print(f"{step} ({seconds:.0f} s): loss {np.mean(losses[-100:]):.3f}")
        if step % 250 == 0 or step == steps:
            said = {name: f"{np.mean(v[-100:]):.2f}" for name, v in sorted(scores.items())}
            console.print(said)
            save()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=1400, help="of a step, at least")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    processor, model = build()
    embeddings = model.get_input_embeddings().weight.detach().clone()
    wording = Wording.of(embeddings, processor.tokenizer)
    lessons = Lessons(processor, wording, options.tokens)

    def save() -> None:
        model.save_pretrained(options.folder)
        processor.save_pretrained(options.folder)
        save_file(wording.tables, options.folder / WORDING_FILE)

    teach(model, lessons.step, options.steps, options.learning_rate, save)


if __name__ == "__main__":
    main()
