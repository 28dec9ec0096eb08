"""Steps of learning that can be stopped at any time and gone on with."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Run:
    """Steps of a learning module, saved as they go.

    Args:
        path: of the state; a run that is there is gone on with.
    """

    def __init__(self, path: Path, learning: nn.Module, options: argparse.Namespace) -> None:
        self.path, self.learning, self.options = path, learning, options
        self.optimizer, self.schedule = optimizer_of(
            list(learning.parameters()), options.steps, options.learning_rate
        )
        self.step = 0
        if path.is_file():
            state = torch.load(path, weights_only=True)
            self.step = state["step"]
            for name in ("learning", "optimizer", "schedule"):
                getattr(self, name).load_state_dict(state[name])

    def learn(self, losses_of_step: Callable[[], dict[str, Tensor]]) -> bool:
        """Whether all steps are done: it stops after the options' minutes."""
        start = time.perf_counter()
        while self.step < self.options.steps:
            take_step(self.optimizer, self.schedule, losses_of_step(), self.step, start)
            self.step += 1
            late = time.perf_counter() - start > 60 * self.options.minutes
            if self.step % 200 == 0 or late or self.step == self.options.steps:
                self.save()
            if late and self.step < self.options.steps:
                console.print(f"stopped at step {self.step}: run it again to go on")
                return False
        return True

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            name: getattr(self, name).state_dict() for name in ("learning", "optimizer", "schedule")
        }
        torch.save(state | {"step": self.step}, self.path)


def optimizer_of(
    parameters: list[nn.Parameter], steps: int, learning_rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, steps, pct_start=0.08, cycle_momentum=False
    )
    return optimizer, schedule


def take_step(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    parts: dict[str, Tensor],
    step: int,
    start: float,
) -> None:
    """Down the sum of some losses; says them now and then."""
    optimizer.zero_grad()
    sum(parts.values(), torch.zeros(())).backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
    schedule.step()
    if step % 50 == 0:
        said = ", ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
        console.print(f"{step} ({time.perf_counter() - start:.0f} s): {said}")
