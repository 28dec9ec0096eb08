"""transformers' Trainer, and what it must be told of this model."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.model.sharding import whole
from geollava.model.vision_tower import VisionTower
from geollava.training.config import TrainConfig
from geollava.training.loading import TRAINED, load_trained
from geollava.training.machine import CHECKPOINTING
from geollava.training.packs import collate
from geollava.training.parts import learning_rates, part_of

SECONDS_PER_LINE = 10.0  # at least, between two lines about packs


class GeoLlavaTrainer(Trainer):
    """transformers' Trainer with a learning rate per part and checkpoints of what is trained.

    Args:
        rates: of each part; see `learning_rates`.
        score: model -> its score, beside the loss of every evaluation.
    """

    def __init__(
        self,
        *args: Any,
        rates: dict[str, float | None],
        score: Callable[[Any], float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.rates, self.score = rates, score
        self.optimizer: torch.optim.Optimizer | None = None
        self.packs_begun, self.said_at = 0, -math.inf
        self.crops = self.crops_begun = 0  # of the pack
        super().__init__(*args, **kwargs)
        for module in self.model.modules():
            if isinstance(module, VisionTower):
                module.register_forward_pre_hook(self.say_crops)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; says which pack begins, for one can take minutes and a step many."""
        self.packs_begun += 1
        pixels = inputs.get("pixel_values")
        self.crops, self.crops_begun = 0 if pixels is None else len(pixels), 0
        self.say(
            f"pack {self.packs_begun:,} of this run, step {self.state.global_step + 1:,} of "
            f"{self.state.max_steps:,}: {inputs['input_ids'].numel():,} tokens"
        )
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.crops = 0
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss and score on the evaluation's rows."""
        metrics = super().evaluate(*args, **kwargs)
        if self.score is not None:
            metrics["eval_score"] = self.score(self.model)
            self.log({"eval_score": metrics["eval_score"]})
        return metrics

    def say_crops(self, tower: nn.Module, inputs: tuple[Tensor]) -> None:
        """How far a pack is. Its crops pass the tower again in the backward pass, if it learns."""
        if self.crops:
            again, done = divmod(self.crops_begun, self.crops)
            self.crops_begun += len(inputs[0])
            when = "backward" if again else "forward"
            self.say(f"pack {self.packs_begun:,}, {when}: {done:,} of {self.crops:,} crops")

    def say(self, line: str) -> None:
        if self.is_world_process_zero() and time.monotonic() - self.said_at >= SECONDS_PER_LINE:
            self.said_at = time.monotonic()
            print(line, flush=True)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            # accelerate shards on accelerators alone and would replicate here, without a word.
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            decaying = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((part_of(name), name in decaying), []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": parameters,
                        "lr": self.rates[part],
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (part, decays), parameters in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        tensors = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                gathered = whole(parameter if not self.is_deepspeed_enabled else state_dict[name])
                if self.args.should_save:
                    tensors[name] = gathered.detach().cpu().clone()
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_trained(self.model, Path(resume_from_checkpoint))


@dataclass(frozen=True)
class Evaluation:
    """Rows that are never trained on.

    Attributes:
        packs: a dataset of packs, one row in each; the mean of their losses is the loss.
        score: model -> share of right answers.
        patience: evaluations without a lower loss before training stops.
    """

    packs: Any
    score: Callable[[Any], float]
    patience: int | None


class StopAtNonsense(TrainerCallback):
    """A loss that is not finite ends the run; what follows it would be worth nothing."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not torch.isfinite(torch.tensor(loss)):
            raise ValueError(f"the loss is {loss} at step {state.global_step}")


def build_trainer(
    config: TrainConfig,
    model: GeoLlavaForConditionalGeneration,
    packs: Any,
    callbacks: Sequence[TrainerCallback] = (),
    evaluation: Evaluation | None = None,
) -> GeoLlavaTrainer:
    """A trainer over a dataset of packs; see `geollava.training.packs.join` for what a pack is."""
    evaluated: dict[str, Any] = {}
    if evaluation is not None:
        evaluated = {
            "eval_strategy": "steps",
            "eval_steps": config.save_every,
            "prediction_loss_only": True,
            "metric_for_best_model": "loss",
            "greater_is_better": False,
        }
        if evaluation.patience is not None:
            callbacks = [*callbacks, EarlyStoppingCallback(evaluation.patience)]
    if "tensorboard" in config.report_to:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(config.output / "tensorboard"))
    arguments = TrainingArguments(
        output_dir=str(config.output),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.accumulate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_gradient_norm,
        bf16=config.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        **{
            CHECKPOINTING: config.gradient_checkpointing,
            f"{CHECKPOINTING}_kwargs": {"use_reentrant": False},
        },
        fsdp=config.sharding == "fsdp2",
        fsdp_config={"version": 2} if config.sharding == "fsdp2" else None,
        deepspeed=str(config.sharding) if isinstance(config.sharding, Path) else None,
        seed=config.seed,
        data_seed=config.seed,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        save_steps=config.save_every,
        save_total_limit=config.keep_checkpoints + (evaluation is not None),  # and the best
        report_to=list(config.report_to) or "none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=True,  # a pack of text alone passes no tower
        per_device_eval_batch_size=1,
        **evaluated,
    )
    return GeoLlavaTrainer(
        model=model,
        args=arguments,
        train_dataset=packs,
        eval_dataset=evaluation.packs if evaluation is not None else None,
        data_collator=collate,
        callbacks=[StopAtNonsense(), *callbacks],
        rates=learning_rates(config),
        score=evaluation.score if evaluation is not None else None,
    )
