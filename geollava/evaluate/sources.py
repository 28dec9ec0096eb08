"""Where benchmark data lies: a file, a folder or a hub name, and its rows as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from geollava.common.extras import install
from geollava.common.readable import named, reason_of
from tokenprune.hub import absent

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_table(source: Path, split: str | None) -> Path:
    """The file with the rows, or the folder itself where `datasets` reads it."""
    if not source.is_dir() or any(
        (source / name).is_file() for name in ("state.json", "dataset_dict.json")
    ):
        return source
    tables = sorted(p for p in source.iterdir() if p.suffix in (".json", ".jsonl"))
    if (source / f"{split or 'test'}.json").is_file():
        return source / f"{split or 'test'}.json"
    if len(tables) == 1:
        return tables[0]
    if tables:
        raise ValueError(
            f"{source} holds {', '.join(path.name for path in tables)}: name one of them"
        )
    return source


def read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        lines = path.suffix == ".jsonl"
        rows = [json.loads(line) for line in text.splitlines() if line] if lines else None
        rows = rows if lines else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a readable JSON file: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of rows, each an object")
    with named(path, "its text must be such that UTF-8 can write it"):
        json.dumps(rows, ensure_ascii=False).encode()
    return rows


def load_dataset(path: Path, source: str, split: str | None) -> Any:
    """A folder of `save_to_disk`, Parquet, or a data set of the hub."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError(
            f"reading {source} needs the extra evaluate: {install('evaluate')}"
        ) from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the error says it
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(path))
        elif path.is_dir() or path.is_file():
            files = sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else [str(path)]
            if not files or Path(files[0]).suffix != ".parquet":
                raise ValueError("it holds neither Parquet, JSON nor a saved data set")
            found = datasets.Dataset.from_parquet(files)
        elif path.is_absolute() or not HUB_NAME.fullmatch(source):
            raise ValueError("it does not exist")
        else:
            found = datasets.load_dataset(source)
    except ConnectionError as error:
        raise ValueError(absent(source, reason_of(error))) from error
    except Exception as error:  # of the file, the hub or the network: all in one line
        reason = reason_of(error.__cause__ or error)  # datasets says of many that one occurred
        raise ValueError(f"the data {source} cannot be read: {reason}") from error
    if isinstance(found, dict):
        names = sorted(found)
        if split is None and len(names) != 1:
            raise ValueError(f"{source} has the parts {', '.join(names)}: choose one by --split")
        if split is not None and split not in found:
            raise ValueError(f"--split must be one of {', '.join(names)}, got {split}")
        return found[split or names[0]]
    return found
