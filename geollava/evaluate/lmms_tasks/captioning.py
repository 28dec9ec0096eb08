"""XLRS-Bench captioning: the functions that its tasks name."""

from __future__ import annotations

from geollava.evaluate.benchmarks.xlrs_caption import BENCHMARK
from geollava.evaluate.lmms_tasks.task import Task

TASK = Task(
    BENCHMARK,
    {
        "rouge_l": None,
        "bleu_1": "BLEU-1",
        "bleu_2": "BLEU-2",
        "bleu_3": "BLEU-3",
        "bleu_4": "BLEU-4",
        "chrf": "chrF",
    },
)
images, prompt, target, outcome = TASK.images, TASK.prompt, TASK.target, TASK.outcome
rouge_l = TASK.score("rouge_l")
bleu_1, bleu_2, bleu_3, bleu_4 = (TASK.score(f"bleu_{order}") for order in (1, 2, 3, 4))
chrf = TASK.score("chrf")
