"""What the model answers to a few rows as training goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from geollava.model.processing import IMAGE_TOKEN, GeoLlavaProcessor
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
        self.path = config.output / "samples.jsonl"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.options.every:
            return
        model = kwargs["model"]
        model.eval()
        try:
            lines = [self.answer(model, row) | {"step": state.global_step} for row in self.rows]
        finally:
            model.train()
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    @torch.no_grad()
    def answer(self, model: Any, row: TrainingRow) -> dict[str, str]:
        question, expected = row.turns[0]
        marks = question.count(IMAGE_TOKEN)
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(images=list(row.images[:marks]) or None, text=prompt)
        tokenizer = self.processor.tokenizer
        generated = model.generate(
            **inputs.to(model.device),
            max_new_tokens=self.options.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        text = tokenizer.decode(
            generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return {"id": row.id, "question": question, "expected": expected, "answer": text.strip()}
