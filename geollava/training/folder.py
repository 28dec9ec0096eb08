"""The folder of a run: what the run is, and its checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from geollava.common.outputs import write_json
from geollava.training.config import TrainConfig

RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"
CONTENTS = "data contents"  # the key of the data files' digests in it
LENGTHS = ("epochs", "max_steps")  # of a run that is resumed these may change: it goes on longer


def is_main_process() -> bool:
    """Whether this is the one of torchrun's processes that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def check_output(config: TrainConfig, resume: bool) -> Path | None:
    """The checkpoint to go on from, None for a new run.

    Raises:
        ValueError: a new run's folder holds something, or a resumed one holds another run or none.
    """
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
    before, now = json.loads(run.read_text(encoding="utf-8")), describe_run(config)
    changed = sorted(key for key in now if before.get(key) != now[key] and key not in LENGTHS)
    if changed:
        raise ValueError(f"{', '.join(changed)}: changed since the run in {config.output} began")
    return last_checkpoint(config.output)


def describe_run(config: TrainConfig) -> dict[str, Any]:
    """What must stay the same for a run to be the same: the configuration, and the data."""
    description = config.model_dump(mode="json")
    files = config.data.files + (config.evaluation.files if config.evaluation is not None else [])
    description[CONTENTS] = [
        hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None for file in files
    ]
    return description


def write_run(config: TrainConfig) -> None:
    """Writes down what the run is, before it begins."""
    config.output.mkdir(parents=True, exist_ok=True)
    write_json(config.output / RUN_FILE, describe_run(config), indent=2)


def read_run(output: Path) -> TrainConfig:
    """The configuration that a run began with."""
    description = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
    description.pop(CONTENTS)
    return TrainConfig.model_validate(description)


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint that was written to its end; its state is written last."""
    states = whole_checkpoints(output)
    return states[max(states)] if states else None


def best_checkpoint(output: Path) -> Path | None:
    """The whole checkpoint of the least loss on the evaluation's rows; without any, the newest."""
    last = last_checkpoint(output)
    if last is None:
        return None
    state = json.loads((last / STATE_FILE).read_text(encoding="utf-8"))
    return whole_checkpoints(output).get(state.get("best_global_step"), last)


def whole_checkpoints(output: Path) -> dict[int, Path]:
    """{step: folder} of the checkpoints that were written to their end."""
    found = {}
    for folder in output.glob("checkpoint-*"):
        try:
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found[state["global_step"]] = folder
    return found
