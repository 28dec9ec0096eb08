"""What the model answers to a few rows as training goes on, and how often that is right."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from geollava.answering.session import Session
from geollava.model.processing import IMAGE_TOKEN, GeoLlavaProcessor
from geollava.model.sharding import is_sharded
from geollava.training.config import TrainConfig
from geollava.training.rows import TrainingRow


class Asking:
    """The model as it is while it trains, asked the first question of rows.

    Args:
        max_new_tokens: of an answer, at most.
    """

    def __init__(
        self, config: TrainConfig, processor: GeoLlavaProcessor, max_new_tokens: int
    ) -> None:
        self.processor, self.max_new_tokens = processor, max_new_tokens
        self.half = config.precision == "bfloat16"  # trained weights are float32 all the same

    def ask(self, model: Any, rows: Sequence[TrainingRow]) -> list[dict[str, str]]:
        """Of each row `id`, `question`, `expected` and `answer`."""
        session = Session.of(model, self.processor)
        training = model.training
        model.eval()
        try:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=self.half):
                return [self.answer(session, row) for row in rows]
        finally:
            model.train(training)

    def answer(self, session: Session, row: TrainingRow) -> dict[str, str]:
        """The answer to a row's first question, whose images stand where its marks do."""
        question, expected = row.turns[0]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        images = row.images[: question.count(IMAGE_TOKEN)]
        with gathered(session.model), session.see(*images) as seen:
            ids = self.processor.tokenize([prompt], seen.lengths)["input_ids"][0]
            (reply,) = seen.reply([ids], self.max_new_tokens)
        return {"id": row.id, "question": question, "expected": expected, "answer": reply.text}


class SampleAnswers(TrainerCallback):
    """Writes the model's answers to a few rows into `samples.jsonl` as training goes on.

    Args:
        rows: whose first questions are asked.
    """

    def __init__(
        self, config: TrainConfig, rows: Sequence[TrainingRow], processor: GeoLlavaProcessor
    ) -> None:
        assert config.samples is not None
        self.every, self.rows = config.samples.every, rows
        self.asking = Asking(config, processor, config.samples.max_new_tokens)
        self.path = config.output / "samples.jsonl"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        answers = self.asking.ask(kwargs["model"], self.rows)
        if state.is_world_process_zero:
            lines = [answer | {"step": state.global_step} for answer in answers]
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def score_of(answers: Sequence[dict[str, str]]) -> float:
    """The share that is as expected, letter case and a final period aside."""

    def plain(text: str) -> str:
        return text.strip().rstrip(".").lower()

    return sum(plain(one["answer"]) == plain(one["expected"]) for one in answers) / len(answers)


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Where weights are sharded, gathers those that no layer holds: a session reads them outside
    the model's forward, which gathers them otherwise. Layers gather their own as they run.
    """
    if not is_sharded(model):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
