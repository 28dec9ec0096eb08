"""Teaches the small model's language model, scenes growing with what it can answer; resumable."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lessons import TELL, Prompts, answer_all, loosened
from running import console
from torch import Tensor, nn

from geollava import GeoLlavaForConditionalGeneration, GeoLlavaProcessor
from geollava.scenes import Asked

STATE_FILE = "teaching.pt"  # where a run is, beside its model
FEWEST, MOST = 4.0, 30.0  # things of a scene, at first and at last
READY = 0.72  # share of right answers from which scenes grow
GROWTH = 0.05  # things a step
LETTERS_FROM = 8  # things; before, no question asks for a letter
LETTERS = 0.25
WARMUP, COOLDOWN = 100, 0.4  # steps; share of the steps


def add_options(parser: argparse.ArgumentParser, steps: int, learning_rate: float) -> None:
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--scenes", type=int, default=2, help="of a step")
    parser.add_argument("--sizes", default="672:0.8,1344:0.2", help="of scenes, with their shares")
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--minutes", type=float, default=90, help="to stop after; run it again")
    parser.add_argument("--seed", type=int, default=0)


class Make(Protocol):
    """Makes a lesson: a scene's visual tokens, [V, text width], and what is asked about it."""

    def __call__(
        self, seed: int, size: int, most: int, letters: float, rng: np.random.Generator
    ) -> tuple[Tensor, list[Asked]]:
        """
        Args:
            size: of the scene in pixels. most: things in it.
            letters: share of the questions that are asked for a letter too.
        """


class Teacher:
    """A run of lessons in a folder: begun anew, or gone on with where it was left.

    Args:
        folder: of the run: model, processor and state.
        options: as `add_options` adds them.
        learning: what learns.
        make: makes each lesson.
    """

    def __init__(
        self,
        folder: Path,
        model: GeoLlavaForConditionalGeneration,
        processor: GeoLlavaProcessor,
        learning: Sequence[nn.Module],
        options: argparse.Namespace,
        make: Make,
    ) -> None:
        self.folder, self.model, self.processor, self.options = folder, model, processor, options
        self.make, self.prompts = make, Prompts(processor)
        model.requires_grad_(False)
        for module in learning:
            module.requires_grad_(True)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, options.learning_rate, (0.9, 0.98), weight_decay=0.01
        )
        self.step, self.most, self.right = 0, FEWEST, 0.0
        if (folder / STATE_FILE).is_file():
            state = torch.load(folder / STATE_FILE, weights_only=True)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.most, self.right = state["step"], state["most"], state["right"]
        self.scores: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=200))

    def run(self) -> None:
        """All steps that are left, or as many as the minutes allow."""
        start, losses = time.monotonic(), deque(maxlen=100)
        self.model.train()
        while self.step < self.options.steps:
            self.step += 1
            losses.append(self.teach_one())
            if self.step % 50 == 0:
                said = " ".join(
                    f"{name} {np.mean(found):.2f}" for name, found in sorted(self.scores.items())
                )
                console.print(
                    f"{self.step} ({time.monotonic() - start:.0f} s): loss {np.mean(losses):.3f}, "
                    f"up to {self.most:.0f} things; {said}"
                )
            late = time.monotonic() - start > 60 * self.options.minutes
            if self.step % 200 == 0 or self.step == self.options.steps or late:
                self.save()
            if late:
                console.print(f"stopped at step {self.step}: run it again to go on")
                return

    def teach_one(self) -> float:
        """One step -> its loss."""
        total = 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * self.rate()
        for number in range(self.options.scenes):
            seed = 10**7 * (self.options.seed + 1) + self.step * self.options.scenes + number
            rng = np.random.default_rng([seed, 22])
            letters = LETTERS if self.most >= LETTERS_FROM else 0.0
            visual, asked = self.make(seed, self.size(rng), int(self.most), letters, rng)
            turns = [
                (one.question if one.letters else loosened(one.question, rng), one.answer)
                for one in asked
            ]
            loss, right = answer_all(self.model, self.prompts, visual, turns)
            (loss / self.options.scenes).backward()
            total += loss.item() / self.options.scenes
            for one, answered in zip(asked, right, strict=True):
                self.scores[one.family + " (letter)" * one.letters].append(answered)
            plain = [
                answered
                for one, answered in zip(asked, right, strict=True)
                if not one.letters and one.family not in ("describe", TELL)
            ]
            self.right += 0.02 * (float(np.mean(plain)) - self.right) if plain else 0.0
        if self.right > READY:
            self.most = min(self.most + GROWTH, MOST)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def rate(self) -> float:
        """Of the learning rate at this step."""
        left = 1 - self.step / self.options.steps
        return min(1.0, self.step / WARMUP, max(0.02, left / COOLDOWN))

    def size(self, rng: np.random.Generator) -> int:
        """Of the next scene, in pixels."""
        sizes, shares = zip(*(one.split(":") for one in self.options.sizes.split(",")), strict=True)
        return int(rng.choice([int(size) for size in sizes], p=[float(share) for share in shares]))

    def save(self) -> None:
        self.model.save_pretrained(self.folder)
        self.processor.save_pretrained(self.folder)
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "most": self.most,
            "right": self.right,
        }
        torch.save(state, self.folder / STATE_FILE)
