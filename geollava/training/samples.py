"""What the model answers to a few rows as training goes on."""

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


class SampleAnswers(TrainerCallback):
    """Writes the model's answers to a few rows into `samples.jsonl` as training goes on.

    Args:
        rows: whose first questions are asked.
    """

    def __init__(
        self, config: TrainConfig, rows: Sequence[TrainingRow], processor: GeoLlavaProcessor
    ) -> None:
        assert config.samples is not None
        self.options, self.rows, self.processor = config.samples, rows, processor
        self.half = config.precision == "bfloat16"  # trained weights are float32 all the same
        self.path = config.output / "samples.jsonl"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.options.every:
            return
        model = kwargs["model"]
        session = Session.of(model, self.processor)
        model.eval()
        try:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=self.half):
                lines = [
                    self.answer(session, row) | {"step": state.global_step} for row in self.rows
                ]
        finally:
            model.train()
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def answer(self, session: Session, row: TrainingRow) -> dict[str, str]:
        """The answer to a row's first question, whose images stand where its marks do."""
        question, expected = row.turns[0]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        images = row.images[: question.count(IMAGE_TOKEN)]
        with gathered(session.model), session.see(*images) as seen:
            ids = self.processor.tokenize([prompt], seen.lengths)["input_ids"][0]
            (reply,) = seen.reply([ids], self.options.max_new_tokens)
        return {"id": row.id, "question": question, "expected": expected, "answer": reply.text}


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
