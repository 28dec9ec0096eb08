"""The board of answers: real `generate` of a trained host under `tokenprune.apply`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tokenprune
from benchmarks.leaderboard.composite import (
    KINDS,
    PER_IMAGE,
    PIXELS,
    Composite,
    make_composite,
)
from benchmarks.leaderboard.controls import (
    BLIND,
    MAJORITY,
    SMALLER,
    WHOLE,
    SmallerImage,
    majority,
    smaller_side,
)
from benchmarks.leaderboard.fetch import CACHE
from benchmarks.leaderboard.host import WORD_OF, ReplayedTower, prompts
from benchmarks.leaderboard.intervals import score_of
from benchmarks.leaderboard.recorded import Replayed, record, recorded
from benchmarks.leaderboard.rows import Row, new_row
from benchmarks.leaderboard.tower import PATCH, load_tower, pixels_of, weights_hash
from benchmarks.leaderboard.train_host import PICTURES, train_host, training_questions
from tokenprune import Method, VisionTokens, get_method
from tokenprune.budget import Budget

SIDE, IMAGES = PIXELS // PATCH, 125
HOST = f"a LLaVA of 1.1 M parameters behind the tower, {SIDE} x {SIDE} tokens a picture"
WITHOUT_BUDGET = (WHOLE, BLIND, MAJORITY)


@dataclass
class AnswersBoard:
    """A host of one seed, and what it is asked.

    Attributes:
        train: gives the host of a seed, without its tower.
    """

    seed: int
    folder: Path = CACHE / "questions"
    images: int = IMAGES
    side: int = SIDE
    train: Callable[[int], Any] = train_host

    @cached_property
    def composites(self) -> list[Composite]:
        return [make_composite("test", number) for number in range(self.images)]

    @cached_property
    def host(self) -> Any:
        host = self.train(self.seed)
        states = torch.cat([self.tokens.cls[:, None], self.tokens.features], dim=1)  # type: ignore[index]
        host.model.vision_tower = ReplayedTower(states)
        return host

    @cached_property
    def tokens(self) -> VisionTokens:
        return self.at(self.side)

    def at(self, side: int) -> VisionTokens:
        """The pictures' tokens where the tower looks at `side` x `side` patches, recorded once."""

        def make() -> VisionTokens:
            images = [composite.image for composite in self.composites]
            return record(load_tower(side), pixels_of(images, side), side)

        return recorded(self.folder / f"{self.images}-{side}.safetensors", side, make)

    @cached_property
    def data(self) -> str:
        digest = hashlib.sha256()
        for composite in self.composites:
            digest.update(composite.image.tobytes())
            digest.update(repr(composite.questions).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def weights(self) -> str:
        return weights_hash(self.host)  # recorded features stand for the tower's weights

    def row(self, name: str, budget: float | None) -> Row:
        """Measures a method or a control at one budget, None for `WITHOUT_BUDGET` and refused ones.

        Raises:
            ValueError: a budget for what has none, or none for what has one.
        """
        reason = self.refusal(name)
        needs_budget = reason is None and name not in WITHOUT_BUDGET
        if needs_budget != (budget is not None):
            raise ValueError(f"{name} must {'have a' if needs_budget else 'not have a'} budget")
        about: dict[str, Any] = {
            "seed": self.seed,
            "host": HOST,
            "data": self.data,
            "weights": self.weights,
            "refused": reason,
        }
        if reason is not None:
            return new_row(name, None, **about)
        num_keep = {BLIND: 0, MAJORITY: 0, WHOLE: self.side**2}.get(name)
        if budget is not None:
            num_keep = Budget(None, budget, "image").kept_of(self.side**2)
        assert num_keep is not None
        if name == SMALLER:
            num_keep = smaller_side(num_keep) ** 2
            self.at(smaller_side(num_keep))
        started = time.process_time()
        right = self.right(name, num_keep)
        seconds = (time.process_time() - started) / (self.images * PER_IMAGE)
        return new_row(
            name,
            budget,
            num_keep=num_keep,
            per_image={"right": [[sum(of), PER_IMAGE] for of in right]},
            kinds=self.by_kind(right),
            cpu_seconds=round(seconds, 6),
            **about,
        )

    def refusal(self, name: str) -> str | None:
        """Why a method cannot run on the host, in the words in which it is refused."""
        if name in (*WITHOUT_BUDGET, SMALLER):
            return None
        try:
            tokenprune.apply(self.host, self.method(name, 1), keep_ratio=0.5).remove()
        except (NotImplementedError, ValueError) as error:
            return str(error)
        return None

    def method(self, name: str, num_keep: int) -> Method:
        tower, project = self.host.model.vision_tower, self.host.model.multi_modal_projector
        if name == SMALLER:
            features = self.at(smaller_side(num_keep)).features
            return SmallerImage(features=features, shown=lambda: tower.shown, project=project)
        method = get_method(name)
        if method.in_layers:
            return method
        return Replayed(
            inner=method, tokens=self.tokens, shown=lambda: tower.shown, project=project
        )

    def right(self, name: str, num_keep: int) -> list[list[bool]]:
        """Of each picture whether each of its questions is answered right."""
        if name == MAJORITY:
            answers = majority([one for asked in training_questions(PICTURES) for one in asked])
            return [
                [answers(one.text) == one.answer for one in of.questions] for of in self.composites
            ]
        reduced = name not in WITHOUT_BUDGET
        applied = (
            tokenprune.apply(self.host, self.method(name, num_keep), num_keep=num_keep)
            if reduced
            else nullcontext()
        )
        shown = 0 if name == BLIND else self.side**2
        with applied:
            of_slots = [self.answered(slot, shown) for slot in range(PER_IMAGE)]
        return [
            [
                answers[number] == one.answer
                for answers, one in zip(of_slots, of.questions, strict=True)
            ]
            for number, of in enumerate(self.composites)
        ]

    @torch.inference_mode()
    def answered(self, slot: int, num_tokens: int) -> list[str | None]:
        """The host's word for every picture's question number `slot`; None is no word."""
        texts = [composite.questions[slot].text for composite in self.composites]
        inputs = prompts(texts, range(self.images), num_tokens)
        if not num_tokens:
            del inputs["pixel_values"]
        out: Tensor = self.host.generate(**inputs, max_new_tokens=1, do_sample=False)
        return [WORD_OF.get(number) for number in out[:, -1].tolist()]

    def by_kind(self, right: Sequence[Sequence[bool]]) -> dict[str, Any]:
        """Scores of each kind of question."""
        found = {}
        for kind in KINDS:
            pairs = [
                [
                    sum(hit for hit, one in asked if one.kind == kind),
                    sum(one.kind == kind for _, one in asked),
                ]
                for hits, of in zip(right, self.composites, strict=True)
                for asked in [list(zip(hits, of.questions, strict=True))]
            ]
            found[kind] = score_of(pairs)
        return found
