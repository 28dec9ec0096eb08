"""One row's outcome, as `predictions.jsonl` keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geollava.common.readable import named, reason_of
from geollava.evaluate.scores import Graded


@dataclass(frozen=True)
class Prediction:
    """What a model replied to one row, or why the row could not be asked.

    Attributes:
        number: the row's place in the data, from 0; "row" in files.
        index: the row's own index. images, subtask: of the row, see `rows.Example`.
        answer: the right one, as the data has it.
        reply, understood: the model's words, and what the benchmark reads in them.
        credit: 0 to 1. confidence: probability of the reply's first token.
        dropped: visual tokens that this question alone went without, in an ablation.
        crops, tokens_before, tokens_after: of the images; None if the model does not tell.
        seconds: "encode" and "answer", this row's share of each; None in finished evaluations.
        problem: why the row was not asked; then no reply, and no credit.
    """

    number: int
    index: Any
    images: tuple[str, ...]
    subtask: str | None
    answer: Any
    reply: str = ""
    understood: Any = None
    credit: float = 0.0
    confidence: float = 0.0
    dropped: int | None = None
    crops: int | None = None
    tokens_before: int | None = None
    tokens_after: int | None = None
    seconds: Mapping[str, float] | None = None
    problem: str | None = None

    @property
    def answered(self) -> bool:
        return self.problem is None

    def graded(self, chance: float = 0.0) -> Graded:
        """As scores count it. Rows about the same first image are one scene."""
        scene = self.images[0] if self.images else self.number
        return Graded(self.subtask, self.credit, scene, chance)

    def to_json(self) -> dict[str, Any]:
        values = {
            "row": self.number,
            "index": self.index,
            "images": list(self.images),
            "subtask": self.subtask,
            "answer": self.answer,
        }
        if self.problem is not None:
            return {**values, "problem": self.problem}
        return {
            **values,
            "reply": self.reply,
            "understood": self.understood,
            "credit": self.credit,
            "confidence": self.confidence,
            **({} if self.dropped is None else {"dropped": self.dropped}),
            "crops": self.crops,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            **({} if self.seconds is None else {"seconds": dict(self.seconds)}),
        }

    @classmethod
    def from_json(cls, values: Any) -> Prediction:
        """Raises ValueError for what is no prediction."""
        try:
            others = {
                name: value for name, value in values.items() if name not in ("row", "images")
            }
            if values.get("problem") is None:
                values["reply"]  # an answered row has one, if it is empty
            return cls(number=values["row"], images=tuple(values["images"]), **others)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                "a prediction must be an object with row, index, images, subtask, answer and a "
                f"reply or a problem, and without unknown names: {reason_of(error)}"
            ) from error

    def to_line(self) -> str:
        # An index or an answer may be of a type of Arrow's that JSON has not.
        return json.dumps(self.to_json(), ensure_ascii=False, default=str) + "\n"


def read_predictions(path: Path) -> list[Prediction]:
    """The lines of a file; a last one that a kill cut short is left out.

    Raises:
        ValueError: a line is no prediction; the message names the file.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    with named(path, "its lines must be predictions"):
        return [Prediction.from_json(json.loads(line)) for line in lines]
