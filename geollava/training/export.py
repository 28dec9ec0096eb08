"""What a run has learned -> a checkpoint like any other, in our form or in the published one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from geollava.common.outputs import folder_written_whole
from geollava.model.checkpoint import resolve_folder
from geollava.model.processing import GeoLlavaProcessor
from geollava.model.published import write_published
from geollava.training.folder import RUN_FILE, best_checkpoint, read_run
from geollava.training.loading import load_model, load_trained, read_model_config
from geollava.training.parts import merge_adapters


def export_run(output: Path, target: Path, form: str = "own", dtype: str = "float32") -> None:
    """A run's best or last checkpoint -> a whole checkpoint, adapters merged in, in one file.

    The best is that of the least loss on the rows of `evaluation`, where the run has such.

    Args:
        output: the run's folder.
        target: must be new or empty, or the result of the same run.
        form: "own" or "published".
        dtype: of the weights that are written.

    Raises:
        ValueError: no run or no whole checkpoint there.
    """
    if not (output / RUN_FILE).is_file() or (best := best_checkpoint(output)) is None:
        raise ValueError(f"{output} must be a run with a whole checkpoint, found none")
    config = read_run(output)
    if config.lora is not None:
        config.lora.quantize = "none"  # adapters are merged into whole weights
    config.precision = "float32"
    folder = resolve_folder(config.model)
    model = load_model(config, folder, read_model_config(config, folder))
    load_trained(model, best)
    merge_adapters(model)
    model.config.untrained = False
    processor = GeoLlavaProcessor.from_pretrained(folder, num_keep=model.config.num_keep)
    save_checkpoint(model.to(getattr(torch, dtype)), processor, target, form)


def save_checkpoint(model: Any, processor: Any, target: Path, form: str) -> None:
    """Model and processor into a folder that appears whole or not at all."""
    with folder_written_whole(target) as partial:
        if form == "published":
            write_published(model, partial, max_shard_size="1TB")
            processor.tokenizer.save_pretrained(partial)
        else:
            model.save_pretrained(partial, max_shard_size="1TB")
            processor.save_pretrained(partial)


def push_checkpoint(folder: Path, name: str) -> str:
    """Uploads a checkpoint to a private repository of a hub -> its address.

    Raises:
        ValueError: the hub cannot be reached, or refuses; says which repository.
    """
    hub = HfApi()
    try:
        made = hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"push_to_hub: {name} cannot be uploaded to: {reason}") from error
    return str(made)
