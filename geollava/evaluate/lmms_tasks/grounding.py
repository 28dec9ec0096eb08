"""XLRS-Bench visual grounding: the functions that its tasks name."""

from __future__ import annotations

from geollava.evaluate.benchmarks.xlrs_grounding import BENCHMARK
from geollava.evaluate.lmms_tasks.task import Task

TASK = Task(
    BENCHMARK,
    {
        "accuracy_iou_50": None,
        "accuracy_iou_70": "accuracy at IoU 0.7",
        "mean_iou": "mean IoU",
    },
)
images, prompt, target, outcome = TASK.images, TASK.prompt, TASK.target, TASK.outcome
accuracy_iou_50 = TASK.score("accuracy_iou_50")
accuracy_iou_70 = TASK.score("accuracy_iou_70")
mean_iou = TASK.score("mean_iou")
