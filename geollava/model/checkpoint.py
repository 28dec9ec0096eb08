"""Checkpoints as files: finding them, and checking every tensor before one is loaded.

The modules of `modeling.py` carry the published tensor names, so a released checkpoint's tensors
are ours as they are; only `config.json` differs, and `published.py` turns one into the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from geollava.common.readable import FileError, named
from tokenprune.hub import absent

CONFIG_FILES = ("config.json", "processor_config.json", "preprocessor_config.json")
# As JSON escapes it. Whole pairs have such a half too, and are text.
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What reading from a hub raises when it, or the file, is not there.
HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
# Tensors that older checkpoints carry although they are computed, never learned.
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")


def resolve_folder(name_or_path: str | Path, *, weights: bool = True, **hub_options: Any) -> Path:
    """The folder of a checkpoint: a local one as it is, a hub name after downloading it.

    Args:
        weights: download the weights too, not only what configures and tokenizes.
        hub_options: for `huggingface_hub.snapshot_download`.

    Raises:
        ValueError: neither a folder nor a hub name that can be reached; says which.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in CONFIG_FILES):
            raise ValueError(f"{folder} must hold a checkpoint's config.json, found none")
        return folder
    if folder.exists():
        raise ValueError(f"a checkpoint must be a folder or a hub name, got the file {folder}")
    if not HUB_NAME.fullmatch(str(name_or_path)):
        raise ValueError(f"a checkpoint must be a folder or a hub name, {folder} does not exist")
    try:
        patterns = ["*.json", "*.txt", "*.jinja"] + ["*.safetensors"] * weights
        return Path(snapshot_download(str(name_or_path), allow_patterns=patterns, **hub_options))
    except HUB_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(absent(name_or_path, reason)) from error


def find_file(source: str | Path, name: str) -> Path | None:
    """One file of a checkpoint, local or on the hub, or None where it has no such file."""
    path = Path(source) / name
    if path.is_file():
        return path
    if Path(source).exists() or not HUB_NAME.fullmatch(str(source)):
        return None
    try:
        return Path(hf_hub_download(str(source), name))
    except HUB_ERRORS:
        return None


def read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} must be a readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} must hold a JSON object, got {type(content).__name__}")
    if SURROGATE.search(text):
        with named(path, "its text must be such that UTF-8 can write it"):
            json.dumps(content, ensure_ascii=False).encode()
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, one or many.

    Raises:
        ValueError: none, one of an index is missing or lies elsewhere, or only pickles, which are
            refused.
    """
    index = folder / "model.safetensors.index.json"
    if (single := folder / "model.safetensors").is_file():
        return [single]
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        files: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
        if not all(isinstance(name, str) for name in files):
            raise ValueError(f"{index}: weight_map must name a file for each tensor")
        names = sorted(set(files))
        outside = [
            name
            for name in names
            if leads_out(PurePosixPath(name)) or leads_out(PureWindowsPath(name))
        ]
        if outside:
            raise ValueError(
                f"{index}: weight_map must name files in the checkpoint's folder, "
                f"got {', '.join(outside[:3])}"
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise ValueError(
                f"{index} names files that are missing: {', '.join(missing) or 'none'}"
            )
        return [folder / name for name in names]
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(
        path.name for path in folder.glob("*.pt*")
    )
    if pickles:
        raise ValueError(
            f"{folder} holds its weights as a pickle ({', '.join(pickles)}), which can run code "
            "when it is opened and is not loaded. Convert it to safetensors: "
            "from safetensors.torch import save_file; "
            f"save_file(torch.load('{pickles[0]}', weights_only=True), 'model.safetensors')"
        )
    raise ValueError(f"{folder} must hold model.safetensors or its index, found neither")


def leads_out(name: PurePath) -> bool:
    """Whether a name can mean a file outside the folder that it stands in."""
    return bool(name.anchor) or ".." in name.parts


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a checkpoint, read from the headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} must be a complete safetensors file: {error}") from error
    return shapes


def check_tensors(
    folder: Path, expected: Mapping[str, tuple[int, ...]], optional: frozenset[str] = frozenset()
) -> None:
    """Every expected tensor is there in its shape, and no other.

    Raises:
        ValueError: names the missing, extra and misshapen tensors.
    """
    stored = {
        name: shape for name, shape in stored_shapes(folder).items() if not COMPUTED.search(name)
    }
    problems = [
        f"missing {name}" for name in expected if name not in stored and name not in optional
    ]
    problems += [f"extra {name}" for name in stored if name not in expected]
    problems += [
        f"misshapen {name}: expected {list(expected[name])}, got {list(shape)}"
        for name, shape in stored.items()
        if name in expected and shape != tuple(expected[name])
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" * (len(problems) > 8))
        raise ValueError(f"{folder} does not fit its config.json: {shown}")
