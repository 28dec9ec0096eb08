"""`geollava train config.yaml`: what may stand in the file, checked before anything is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from geollava.common.extras import install
from geollava.common.readable import named, reason_of, shortened

try:
    import yaml
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
except ModuleNotFoundError as error:
    raise ImportError(f"training needs the extra train: {install('train')}") from error

Rate = Annotated[float, Field(gt=0, lt=math.inf)] | Literal["frozen"]
Count = Annotated[int, Field(ge=1)]
MAX_ALIASES = 8


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class DataConfig(Section):
    """Which rows are trained on.

    Attributes:
        files: JSON files; see `geollava.training.rows`.
        image_folder: where image paths start; each file's own folder by default.
        on_bad_rows: "refuse" to train, or "skip" the bad rows. No row is ever replaced.
        decode_images: look at every pixel beforehand, which finds files that end early.
        pack_visual_tokens: samples that together have at most so many visual tokens share a step's
            sequence, each blind to the others; without it each sample is a step of its own.
        encode_once: pass images through the tower before training begins and keep what the
            reduction keeps, in memory: 28 MB for an 8K image at full size. Only where neither
            tower nor affinity head learns.
    """

    files: Annotated[list[Path], Field(min_length=1)]
    image_folder: Path | None = None
    on_bad_rows: Literal["refuse", "skip"] = "refuse"
    decode_images: bool = True
    pack_visual_tokens: Count | None = None
    encode_once: bool = False


class PartsConfig(Section):
    """Learning rate of each part, or "frozen". The published recipe by default."""

    vision_tower: Rate = 1e-6
    projector: Rate = 5e-6
    affinity_head: Rate = "frozen"
    language_model: Rate = 5e-6


class LoraSection(Section):
    """Low-rank adapters in the language model, by peft.

    Attributes:
        quantize: "4bit" keeps the frozen language model in NF4 (QLoRA); needs a GPU.
    """

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    alpha: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    learning_rate: Annotated[float, Field(gt=0, lt=math.inf)] = 1e-4
    targets: Annotated[list[str], Field(min_length=1)] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    quantize: Literal["none", "4bit"] = "none"


class SamplesConfig(Section):
    """Answers written down during training: of the first `rows` rows, every `every` steps."""

    every: Count = 100
    rows: Count = 4
    max_new_tokens: Count = 32


class EvaluationConfig(Section):
    """Rows that are never trained on, looked at wherever a checkpoint is saved.

    The result is the checkpoint of the least loss on them, not the last.

    Attributes:
        files: as `data.files`; no row's id may be among those that are trained on.
        asked: of the first so many rows the first question is asked; the score is the share of
            answers that are the row's own, letter case and a final period aside.
        patience: stop when the loss was not the least for so many checkpoints; never by default.
    """

    files: Annotated[list[Path], Field(min_length=1)]
    asked: Count = 32
    max_new_tokens: Count = 32
    patience: Count | None = None


class TrainConfig(Section):
    """One training run.

    Attributes:
        model: checkpoint to start from, a folder or a hub name.
        output: folder of the run: checkpoints, logs, samples, and `model`, the result.
        assignment, temperature: of the token reduction while training, see
            `tokenprune.ops.background_anchored`; the affinity head learns only when it is not hard.
        num_keep: visual tokens per crop, the checkpoint's own by default.
        epochs, max_steps: how long; max_steps counts where it is given.
        accumulate: steps of one sample or pack whose gradients are added up.
        warmup: share of the steps over which learning rates rise.
        gradient_checkpointing: keep few activations and compute them twice.
        precision: "bfloat16" computes in it and keeps frozen weights in it; trained ones stay
            float32.
        liger: fused norms, rotations and MLPs of liger-kernel in the language model's layers: on a
            GPU where it is installed, unless false; true refuses to go without.
        sharding: "fsdp2" spreads what is trained over the processes of torchrun; a path names a
            DeepSpeed configuration.
        keep_checkpoints: the newest so many, and the best where the run is evaluated.
        export: the form of the result, "own" or "published".
        push_to_hub: the name of a private repository, "owner/name", that the result is uploaded to;
            made where it does not exist. Nothing leaves the machine without it.
    """

    model: str
    data: DataConfig
    output: Path
    parts: PartsConfig = PartsConfig()
    lora: LoraSection | None = None
    assignment: Literal["hard", "straight_through", "soft"] = "hard"
    temperature: Annotated[float, Field(gt=0, lt=math.inf)] = 1.0
    num_keep: Count | None = None
    epochs: Annotated[float, Field(gt=0, lt=math.inf)] = 1.0
    max_steps: Count | None = None
    accumulate: Count = 1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    gradient_checkpointing: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    liger: bool | None = None
    sharding: Literal["none", "fsdp2"] | Path = "none"
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    log_every: Count = 1
    save_every: Count = 100
    keep_checkpoints: Count = 2
    report_to: list[Literal["tensorboard", "wandb"]] = []
    samples: SamplesConfig | None = None
    evaluation: EvaluationConfig | None = None
    export: Literal["own", "published"] = "own"
    push_to_hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None

    @model_validator(mode="after")
    def check_combinations(self) -> TrainConfig:
        rates = self.parts.model_dump()
        if all(rate == "frozen" for rate in rates.values()) and self.lora is None:
            raise ValueError(
                "parts: everything is frozen and there is no lora, nothing would learn"
            )
        if self.assignment == "hard" and rates["affinity_head"] != "frozen":
            raise ValueError(
                "parts.affinity_head: a hard assignment gives it no gradient; freeze it, or set "
                "assignment: straight_through or soft"
            )
        learning = [part for part in ("vision_tower", "affinity_head") if rates[part] != "frozen"]
        if self.data.encode_once and (learning or self.sharding != "none"):
            raise ValueError(
                f"data.encode_once: needs {' and '.join(learning) or 'sharding: none'}"
                f"{' frozen' if learning else ''}"
            )
        if self.lora is not None and rates["language_model"] != "frozen":
            raise ValueError("parts.language_model: must be frozen where lora adapts it")
        if self.lora is not None and self.lora.quantize != "none" and self.sharding != "none":
            raise ValueError("lora.quantize: 4bit weights cannot be sharded; set sharding: none")
        if self.assignment == "soft" and self.export == "published":
            raise ValueError(
                "export: the published form knows only hard assignments, which soft training does "
                "not end in; set export: own, or assignment: straight_through"
            )
        return self


class StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error, not the last one's say.

    Aliases are few: each can double what stands before it.
    """

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    f"expected at most {MAX_ALIASES} aliases (*name), got more",
                    self.peek_event().start_mark,
                )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_config(path: Path) -> TrainConfig:
    """The run that a YAML file describes; relative paths in it start at the file's folder.

    Raises:
        ValueError: names the file and the offending place: line and column, or the key.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a readable YAML file: {error}") from error
    except Exception as error:  # the constructors of YAML's own types raise what they like
        raise ValueError(f"{path}{yaml_problem(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(content).__name__}")
    try:
        config = TrainConfig.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(describe(one) for one in error.errors())}") from error
    with named(path, "a path in it cannot be used"):
        return resolve_paths(config, path.parent)


def yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = reason_of(ValueError(getattr(error, "problem", None) or str(error)))
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{place}: {what}"


def describe(error: Any) -> str:
    """One of pydantic's errors in one line: the key, what was expected, what came."""
    # Where alternatives are allowed pydantic adds the alternative's name, which is no key.
    keys = [
        str(key) for key in error["loc"] if not str(key).startswith(("literal[", "constrained"))
    ]
    keys = [key for key in keys if key not in ("float", "path")]
    place = ".".join(keys)
    if error["type"] == "extra_forbidden":
        return f"{place} is no key of this file"
    if error["type"] == "missing":
        return f"{place} must be given"
    message = error["msg"].removeprefix("Value error, ")
    if not place:
        return message
    return f"{place}: {message[0].lower()}{message[1:]}, got {shortened(repr(error['input']), 200)}"


def resolve_paths(config: TrainConfig, folder: Path) -> TrainConfig:
    def resolve(path: Path) -> Path:
        return (folder / path).resolve()

    config.data.files = [resolve(file) for file in config.data.files]
    if config.evaluation is not None:
        config.evaluation.files = [resolve(file) for file in config.evaluation.files]
    if config.data.image_folder is not None:
        config.data.image_folder = resolve(config.data.image_folder)
    config.output = resolve(config.output)
    if isinstance(config.sharding, Path):
        config.sharding = resolve(config.sharding)
    if (folder / config.model).is_dir():
        config.model = str(resolve(Path(config.model)))
    return config
