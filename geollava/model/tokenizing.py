"""The tokenizer of a checkpoint: its files checked before transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from geollava.common.readable import named, quiet_panics
from geollava.model import checkpoint

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def load_tokenizer(folder: Path) -> Any:
    names = TOKENIZER_FILES[:3]
    if not any((folder / name).is_file() for name in names):
        raise ValueError(f"{folder} must hold the tokenizer ({' or '.join(names)}), found none")
    found = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    for path in found:
        content = checkpoint.read_json(path)
        if path.name == "tokenizer_config.json":
            check_tokenizer_config(path, content)
    for path in folder.glob("*.jinja"):
        with named(path, "the chat template cannot be read"):
            path.read_text(encoding="utf-8")
    with named(found[0] if found else folder, "the tokenizer cannot be loaded"), quiet_panics():
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def check_tokenizer_config(path: Path, content: dict[str, Any]) -> None:
    """What transformers takes as it is, whatever its type."""
    length, kind = content.get("model_max_length", 1), content.get("tokenizer_class", "")
    if not isinstance(length, (int, float)):
        raise ValueError(f"{path}: model_max_length must be a number, got {length!r}")
    if not isinstance(kind, str):
        raise ValueError(f"{path}: tokenizer_class must be a string, got {kind!r}")
