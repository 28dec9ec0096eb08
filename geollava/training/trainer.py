"""`geollava train config.yaml`: transformers' Trainer, and what it must be told of this model."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from geollava.common.extras import install
from geollava.common.outputs import folder_written_whole
from geollava.model.checkpoint import resolve_folder
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.model.processing import IMAGE_TOKEN, GeoLlavaProcessor
from geollava.model.published import write_published
from geollava.model.sharding import whole
from geollava.model.vision_tower import VisionTower
from geollava.training import rows as data
from geollava.training.config import TrainConfig
from geollava.training.packs import Packs, Size, collate, count_crops, measure, pack
from geollava.training.plan import plan_of

RUN_FILE = "run.json"
SECONDS_PER_LINE = 10.0  # at least, between two lines about packs
TRAINED = "trained.safetensors"  # what a checkpoint of a run holds of the model: no frozen tensor
PARTS = {
    "lora": re.compile(r"lora_"),
    "affinity_head": re.compile(r"^reghead\."),
    "projector": re.compile(r"^model\.mm_projector\."),
    "vision_tower": re.compile(r"^model\.vision_tower\."),
    "language_model": re.compile(r""),
}


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Trains, and writes the result -> the folder of the trained model.

    Everything that can be wrong with the configuration and the data is found before a weight is
    loaded.

    Args:
        resume: go on from the last whole checkpoint in `config.output`; the losses are those of a
            run that was never interrupted.

    Raises:
        ValueError, ImportError: what is wrong, with its place.
    """
    check_machine(config)
    if resume and config.sharding == "fsdp2" and not torch.cuda.is_available():
        raise NotImplementedError(
            "--resume of sharding: fsdp2 needs GPUs: accelerate waits forever when it loads on CPUs"
        )
    last = check_output(config, resume)
    folder = resolve_folder(config.model)
    model_config = read_model_config(config, folder)
    processor = GeoLlavaProcessor.from_pretrained(folder, num_keep=model_config.num_keep)
    packs = load_packs(config, processor, model_config)
    if is_main_process():
        write_atomically(config.output / RUN_FILE, describe_run(config))
        print(describe_plan(config, model_config, packs), flush=True)

    model = load_model(config, folder, model_config)
    if config.data.encode_once:
        encode_images(model, packs)
    trainer = build_trainer(config, model, packs, processor)
    trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
    target = config.output / "model"
    if trainer.is_world_process_zero():
        export_run(config.output, target, config.export)
    trainer.accelerator.wait_for_everyone()
    return target


def check_machine(config: TrainConfig) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if config.sharding == "fsdp2" and processes == 1:
        raise ValueError(
            "sharding: fsdp2 needs several processes: torchrun --nproc-per-node N -m geollava "
            "train config.yaml"
        )
    if isinstance(config.sharding, Path):
        if not config.sharding.is_file():
            raise ValueError(f"sharding: must be none, fsdp2 or a file, got {config.sharding}")
        require("deepspeed", "sharding", "pip install deepspeed")
    if config.lora is not None:
        require("peft", "lora", install("train"))
        if config.lora.quantize == "4bit":
            if not torch.cuda.is_available():
                raise ValueError("lora.quantize: 4bit needs a CUDA device, found none")
            require("bitsandbytes", "lora.quantize", install("qlora"))
    if config.liger:
        if not torch.cuda.is_available():
            raise ValueError("liger: its kernels need a CUDA device, found none")
        require("liger_kernel", "liger", "pip install liger-kernel")
    for name in config.report_to:
        require(name, "report_to", f"pip install {name}")


def require(package: str, key: str, remedy: str) -> None:
    if find_spec(package) is None:
        raise ImportError(f"{key}: needs {package}: {remedy}")


def check_output(config: TrainConfig, resume: bool) -> Path | None:
    """The checkpoint to go on from, None for a new run."""
    run = config.output / RUN_FILE
    if not resume:
        # One process looks: when the others come to it, the run may have begun.
        if is_main_process() and config.output.exists() and any(config.output.iterdir()):
            raise ValueError(
                f"output: {config.output} must be new or empty; --resume continues a run"
            )
        return None
    if not run.is_file():
        raise ValueError(f"output: {config.output} holds no run to resume")
    before, now = json.loads(run.read_text()), describe_run(config)
    changed = sorted(key for key in now if before.get(key) != now[key])
    if changed:
        raise ValueError(f"{', '.join(changed)}: changed since the run in {config.output} began")
    return last_checkpoint(config.output)


def describe_run(config: TrainConfig) -> dict[str, Any]:
    """What must stay the same for a run to be the same: the configuration, and the data."""
    description = config.model_dump(mode="json")
    description["data contents"] = [
        hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        for file in config.data.files
    ]
    return description


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint that was written to its end; its state is written last."""
    whole = []
    for folder in output.glob("checkpoint-*"):
        try:
            state = json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        whole.append((state["global_step"], folder))
    return max(whole)[1] if whole else None


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def read_model_config(config: TrainConfig, folder: Path) -> GeoLlavaConfig:
    model_config = GeoLlavaConfig.from_pretrained(folder)
    model_config.merge_assignment = config.assignment
    model_config.merge_temperature = config.temperature
    model_config.num_keep = config.num_keep or model_config.num_keep
    model_config.check()
    return model_config


def load_packs(
    config: TrainConfig, processor: GeoLlavaProcessor, model_config: GeoLlavaConfig
) -> Packs:
    """The rows of the configuration, checked, measured and grouped.

    Raises:
        ValueError: a bad row, or one that is too long, where they are refused.
    """
    rows, sizes, report = data.load_checked(
        config.data.files,
        config.data.image_folder,
        on_bad_rows=config.data.on_bad_rows,
        select_canvas=processor.image_processor.select_canvas,
        decode=config.data.decode_images,
    )
    crops = [[count_crops(processor, size) for size in images] for images in sizes]
    measured = [measure(processor, row, counts) for row, counts in zip(rows, crops, strict=True)]
    limit = model_config.text_config.max_position_embeddings
    fitting = [index for index, size in enumerate(measured) if size.tokens <= limit]
    if len(fitting) < len(rows):
        index = next(index for index, size in enumerate(measured) if size.tokens > limit)
        message = (
            f"data: the row with id {rows[index]['id']} has {measured[index].tokens:,} tokens, "
            f"more than the model's {limit:,} positions"
        )
        if config.data.on_bad_rows == "refuse" or not fitting:
            raise ValueError(message)
    skipped = len({(p.file, p.row) for p in report.problems}) + len(rows) - len(fitting)
    if skipped and is_main_process():
        print(f"data: {skipped} of {report.rows} rows are bad and left out", flush=True)
    kept: list[Size] = [measured[index] for index in fitting]
    groups = pack(kept, config.data.pack_visual_tokens, limit, config.seed)
    groups = [[fitting[index] for index in group] for group in groups]
    tokens = [sum(measured[index].tokens for index in group) for group in groups]
    return Packs(rows, crops, groups, processor, tokens)


def describe_plan(config: TrainConfig, model_config: GeoLlavaConfig, packs: Packs) -> str:
    crops = [sum(sum(packs.crops[row]) for row in group) for group in packs.groups]
    rows = sum(map(len, packs.groups))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return plan_of(config, model_config, rows, packs.tokens, crops, processes)


def load_model(
    config: TrainConfig, folder: Path, model_config: GeoLlavaConfig
) -> GeoLlavaForConditionalGeneration:
    """The model with its parts frozen and its adapters in place, as the configuration says."""
    half = config.precision == "bfloat16"
    options: dict[str, Any] = {"dtype": torch.bfloat16 if half else torch.float32}
    if config.lora is not None and config.lora.quantize == "4bit":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["vision_tower", "mm_projector", "reghead", "lm_head"],
        )
    model = GeoLlavaForConditionalGeneration.from_pretrained(folder, config=model_config, **options)
    fuse_layers(config, model)
    add_adapters(config, model)
    rates = learning_rates(config)
    idle = set(model.model.vision_tower.idle_parameters())
    for name, parameter in model.named_parameters():
        learns = rates[part_of(name)] is not None and parameter not in idle
        parameter.requires_grad_(learns)
        if learns:
            parameter.data = parameter.data.float()
    return model


def encode_images(model: GeoLlavaForConditionalGeneration, packs: Packs) -> None:
    from geollava.commands.console import progress_bar

    target = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(target).eval()
    with progress_bar() as bar, torch.no_grad():
        task = bar.add_task("images", total=None)
        packs.encode(
            lambda crops: model.encode_crops(crops).features.cpu(),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def fuse_layers(config: TrainConfig, model: GeoLlavaForConditionalGeneration) -> None:
    """Liger's kernels in the language model's layers, where they are wanted and can run.

    The loss stays ours: logits are computed only where answers are, so there is nothing to fuse.
    """
    possible = torch.cuda.is_available() and find_spec("liger_kernel") is not None
    if config.liger is False or not possible:
        return
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2

    apply_liger_kernel_to_qwen2(fused_linear_cross_entropy=False, model=model.model)


def add_adapters(config: TrainConfig, model: GeoLlavaForConditionalGeneration) -> None:
    if config.lora is None:
        return
    from peft import LoraConfig

    targets = "|".join(re.escape(name) for name in config.lora.targets)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model.add_adapter(
            LoraConfig(
                r=config.lora.rank,
                lora_alpha=config.lora.alpha,
                lora_dropout=config.lora.dropout,
                target_modules=rf"model\.layers\.\d+\.(self_attn|mlp)\.({targets})",
            )
        )


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    return next(part for part, pattern in PARTS.items() if pattern.search(name))


def learning_rates(config: TrainConfig) -> dict[str, float | None]:
    """Of each part; None where it is frozen."""
    rates = {
        part: None if rate == "frozen" else float(rate)
        for part, rate in config.parts.model_dump().items()
    }
    return rates | {"lora": config.lora.learning_rate if config.lora is not None else None}


class GeoLlavaTrainer(Trainer):
    """transformers' Trainer with a learning rate per part and checkpoints of what is trained."""

    def __init__(self, *args: Any, rates: dict[str, float | None], **kwargs: Any) -> None:
        self.rates = rates
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


def load_trained(model: nn.Module, folder: Path) -> None:
    """Puts what a checkpoint of a run holds into the model that the run began with."""
    trained = load_file(folder / TRAINED)
    _, unexpected = model.load_state_dict(trained, strict=False)
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if unexpected or expected != set(trained):
        wrong = sorted(set(unexpected) | (expected ^ set(trained)))
        raise ValueError(f"{folder / TRAINED} is not of this run: {', '.join(wrong[:4])}")


def build_trainer(
    config: TrainConfig,
    model: GeoLlavaForConditionalGeneration,
    packs: Any,
    processor: GeoLlavaProcessor | None,
) -> GeoLlavaTrainer:
    """A trainer over a dataset of packs; see `train_data.join` for what a pack is."""
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
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
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
        save_total_limit=config.keep_checkpoints,
        report_to=list(config.report_to) or "none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=True,  # a pack of text alone passes no tower
    )
    callbacks: list[TrainerCallback] = [StopAtNonsense()]
    if config.samples is not None and processor is not None:
        callbacks.append(SampleAnswers(config, packs.rows, processor))
    return GeoLlavaTrainer(
        model=model,
        args=arguments,
        train_dataset=packs,
        data_collator=collate,
        callbacks=callbacks,
        rates=learning_rates(config),
    )


class StopAtNonsense(TrainerCallback):
    """A loss that is not finite ends the run; what follows it would be worth nothing."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not torch.isfinite(torch.tensor(loss)):
            raise ValueError(f"the loss is {loss} at step {state.global_step}")


class SampleAnswers(TrainerCallback):
    """Writes the model's answers to a few rows into `samples.jsonl` as training goes on."""

    def __init__(self, config: TrainConfig, rows: Any, processor: GeoLlavaProcessor) -> None:
        assert config.samples is not None
        self.options, self.processor = config.samples, processor
        self.path = config.output / "samples.jsonl"
        self.rows = [rows[index] for index in range(min(self.options.rows, len(rows)))]

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
    def answer(self, model: Any, row: dict[str, Any]) -> dict[str, str]:
        question, expected = (turn["value"] for turn in row["conversations"][:2])
        marks = question.count(IMAGE_TOKEN)
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(images=row["image"][:marks] or None, text=prompt)
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
        return {"id": row["id"], "question": question, "expected": expected, "answer": text.strip()}


def export_run(output: Path, target: Path, form: str = "own", dtype: str = "float32") -> None:
    """A run's last checkpoint -> a whole checkpoint with adapters merged in, in one file.

    Args:
        output: the run's folder.
        target: must be new or empty, or the result of the same run.
        form: "own" or "published".
        dtype: of the weights that are written.

    Raises:
        ValueError: no run or no whole checkpoint there.
    """
    if not (output / RUN_FILE).is_file() or (last := last_checkpoint(output)) is None:
        raise ValueError(f"{output} must be a run with a whole checkpoint, found none")
    description = json.loads((output / RUN_FILE).read_text())
    description.pop("data contents")
    config = TrainConfig.model_validate(description)
    if config.lora is not None:
        config.lora.quantize = "none"  # adapters are merged into whole weights
    config.precision = "float32"
    folder = resolve_folder(config.model)
    model = load_model(config, folder, read_model_config(config, folder))
    load_trained(model, last)
    merge_adapters(model)
    model.config.untrained = False
    processor = GeoLlavaProcessor.from_pretrained(folder, num_keep=model.config.num_keep)
    save_checkpoint(model.to(getattr(torch, dtype)), processor, target, form)


def merge_adapters(model: GeoLlavaForConditionalGeneration) -> None:
    """Adds what adapters learned to the weights that they adapt, and takes them out."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config


def save_checkpoint(model: Any, processor: Any, target: Path, form: str) -> None:
    """Model and processor into a folder that appears whole or not at all."""
    with folder_written_whole(target) as partial:
        if form == "published":
            write_published(model, partial, max_shard_size="1TB")
            processor.tokenizer.save_pretrained(partial)
        else:
            model.save_pretrained(partial, max_shard_size="1TB")
            processor.save_pretrained(partial)
