"""A model hub is asked for the files of what is named, and for nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# No statistics with the requests; no service that is asked to convert a pickle.
FILES_ALONE = {"HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_SAFETENSORS_CONVERSION": "1"}
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def ask_for_files_alone() -> None:
    """For commands, before they import huggingface_hub. What the environment says stays."""
    for name, value in FILES_ALONE.items():
        os.environ.setdefault(name, value)


def offline() -> str | None:
    """The variable of the environment that forbids downloads, or None. Needs huggingface_hub."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return None
    return next((name for name in OFFLINE if os.environ.get(name)), OFFLINE[0])


def absent(name: str | Path, reason: str) -> str:
    """One line about a hub name that gives nothing.

    Args:
        reason: what the hub's client says of it; of interest where downloads are allowed.
    """
    if variable := offline():
        return (
            f"{name} is neither a folder here nor whole in the hub's cache, and {variable} "
            "forbids to download it"
        )
    return f"{name} is not a folder here, and the hub does not give it: {reason}"


@contextmanager
def loading(name: str) -> Iterator[None]:
    """For a block that loads a model by folder or hub name.

    Raises:
        ValueError: in place of an OSError over a hub name; names it, and the variable that forbids
            downloads.
    """
    try:
        yield
    except OSError as error:
        if Path(name).exists():
            raise
        raise ValueError(absent(name, str(error).strip().splitlines()[0])) from error


def refuse_adapter(name: str | Path) -> None:
    """For a checkpoint that transformers is to load, by folder or hub name.

    Raises:
        OSError: it has no configuration, or the hub cannot be reached: said before a file after
            another is asked for in vain.
        ValueError: it holds an adapter. transformers would load that too, from a pickle if need be,
            and the base model that it names.
    """
    from transformers.utils import cached_file, find_adapter_config_file

    cached_file(str(name), "config.json")
    if find_adapter_config_file(str(name)) is not None:
        raise ValueError(f"{name} must hold whole weights, got an adapter (adapter_config.json)")
