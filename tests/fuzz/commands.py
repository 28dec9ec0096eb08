"""The command line as a target: each reads a mutated file in a folder of good ones.

Whatever is in the file, a command ends with exit code 0, or with 2 and one line `error: ...`.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "checkpoint-a"  # a name that no message holds otherwise


class MisbehavedError(Exception):
    """A command that ended otherwise than it may."""


def run(
    main: Callable[[list[str]], None],
    *arguments: object,
    names: tuple[str, ...] = (),
    alone: bool = True,
    reports: bool = False,
) -> None:
    """Runs a command. ValueError with its one line where it refuses.

    Args:
        names: one of them must stand in that line.
        alone: nothing but notes may stand before that line.
        reports: the command may print what it refuses on the standard output instead.
    """
    # As the system's own streams: what UTF-8 cannot write is an error on the first of them.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    code: object = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code or 0
    printed, said = (content_of(stream) for stream in (out, err))
    sys.stderr.write(said)  # the worker looks for tracebacks in it
    if code not in (0, 2):
        raise MisbehavedError(f"exit {code}: {said[-2000:]}")
    if code == 0:
        return
    lines = [line for line in said.splitlines() if not line.startswith("note: ")]
    if reports and printed and not lines:
        raise ValueError("reported")
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or lines[-1] != errors[0] or (alone and len(lines) > 1):
        raise MisbehavedError(f"exit 2 without one line that says why: {said[-2000:]}")
    if names and not any(name in errors[0] for name in names):
        raise MisbehavedError(f"the error names no file: {errors[0]}")
    raise ValueError(errors[0])


def content_of(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def geollava(*arguments: object, **options: Any) -> None:
    from geollava.commands import main as cli

    run(cli.main, *arguments, **options)


def clear(*names: str) -> None:
    """Takes away what the last input left."""
    for name in names:
        path = Path(name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# -- seeds ----------------------------------------------------------------------------------------


def picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def checkpoint(folder: Path, form: str) -> list[Path]:
    """A checkpoint that answers in a tenth of a second -> its files."""
    import torch

    from geollava import GeoLlavaConfig, GeoLlavaForConditionalGeneration, GeoLlavaProcessor
    from geollava.model.processing import GeoLlavaImageProcessor
    from geollava.training.export import save_checkpoint
    from tests.tokenprune.checkpoint import byte_tokenizer

    tokenizer = byte_tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {"vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = GeoLlavaConfig(
        vision_config=sizes | {"image_size": 28, "patch_size": 14},
        text_config=sizes | text,
        num_keep=2,
        max_crops=4,
        vision_tower_name="vision_tower",
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GeoLlavaForConditionalGeneration(config).eval()
    processor = GeoLlavaProcessor(
        GeoLlavaImageProcessor.from_config(config),
        tokenizer,
        num_keep=config.num_keep,
        tokens_per_frame=config.tokens_per_frame,
    )
    save_checkpoint(model, processor, folder, form)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def own_checkpoint(folder: Path) -> list[Path]:
    picture(folder)
    return checkpoint(folder / MODEL, "own")


def published_checkpoint(folder: Path) -> list[Path]:
    picture(folder)
    return checkpoint(folder / MODEL, "published")


def beside_a_model(seeds: Callable[[Path], list[Path]]) -> Callable[[Path], list[Path]]:
    """Seeds, and a good checkpoint beside them."""

    def beside(folder: Path) -> list[Path]:
        checkpoint(folder / MODEL, "own")
        return seeds(folder)

    return beside


def lists_of_scenes(folder: Path) -> list[Path]:
    """What `batch` reads, and an output of its own that it goes on from."""
    import pyarrow
    from pyarrow import csv, parquet

    picture(folder)
    table = pyarrow.table({"scene": ["a.png"], "more": [1]})
    parquet.write_table(table, folder / "scenes.parquet")
    csv.write_csv(table, folder / "scenes.csv")
    (folder / "questions.txt").write_text("How many ships?\nWhich color?\n")
    parts = ("--questions", folder / "questions.txt", "--out", folder / "out.parquet")
    geollava("batch", folder / "scenes.csv", *parts, *model_of(folder))
    names = ("a.png", "scenes.parquet", "scenes.csv", "questions.txt", "out.parquet")
    return [folder / name for name in names]


def benchmark_rows(folder: Path) -> list[Path]:
    import pyarrow
    from pyarrow import parquet

    image = picture(folder).read_bytes()
    row = {
        "index": 0, "question": "What?", "multi-choice options": ["(A) x", "(B) y"], "answer": "A",
        "category": "Counting/Overall counting", "l2-category": "y", "l1-category": "Perception",
        "Text": "What?", "Ground truth": "A", "Answer choices": ["(A) x", "(B) y"],
        "Subtask": "Reasoning", "Category": "Remote Sensing/x", "Question_id": "0",
    }  # fmt: skip
    (folder / "rows.json").write_text(json.dumps([row | {"image": "a.png"}]))
    cell = {"bytes": image, "path": "a.png"}
    parquet.write_table(pyarrow.Table.from_pylist([row | {"image": cell}]), folder / "rows.parquet")
    return [folder / "rows.json", folder / "rows.parquet"]


RECIPE = """\
model: checkpoint-a
output: run
max_steps: 1
liger: false
samples: {every: 1, rows: 1, max_new_tokens: 1}
data:
  files: [rows.json]
  pack_visual_tokens: 100
lora:
  rank: 2
parts:
  vision_tower: frozen
  projector: 1.0e-3
  language_model: frozen
"""


def training(folder: Path) -> list[Path]:
    """A recipe of one step, and its rows."""
    picture(folder)
    talk = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "2"}]
    rows = [{"id": name, "image": "a.png", "conversations": talk} for name in "ab"]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return [folder / "recipe.yaml", folder / "recipe.yaml", folder / "rows.json"]


def llava(folder: Path) -> list[Path]:
    from tests.tokenprune.checkpoint import write_llava

    write_llava(folder / MODEL)
    return [picture(folder)]


# -- commands, in the folder of the seeds ---------------------------------------------------------


def model_of(folder: Path) -> tuple[object, ...]:
    return "--model", folder / MODEL, "--max-new-tokens", 2


def ask(path: Path) -> None:
    options = (*model_of(Path()), "--max-megapixels", 4)
    geollava("ask", path, "What?", *options, names=(path.name,))


def ask_a_checkpoint(path: Path) -> None:
    # Weights that are numbers all the same may lead to tokens that are not.
    geollava("ask", "a.png", "What?", *model_of(Path()), names=(MODEL, "must be finite"))


def export(path: Path) -> None:
    clear("exported")
    geollava("export", MODEL, "exported", names=(MODEL,))


def batch(path: Path) -> None:
    scenes = path if path.stem == "scenes" else Path("scenes.csv")
    if path.name != "out.parquet":
        clear("out.parquet")
    parts = ("--questions", "questions.txt", "--out", "out.parquet")
    geollava("batch", scenes, *parts, *model_of(Path()), names=(path.name,))


def evaluate(path: Path) -> None:
    clear("results")
    options = ("--out", "results", *model_of(Path()))
    geollava("evaluate", "xlrs", "--data", path, *options, names=(path.name, "row "))


def train(path: Path) -> None:
    """What the trainer prints may stand before the error."""
    from geollava.training.config import read_config

    clear("run")
    with suppress(ValueError):
        config = read_config(path.with_name("recipe.yaml"))
        long = [config.max_steps, config.epochs, config.samples and config.samples.max_new_tokens]
        if any(asked is not None and asked > 2 for asked in long):
            return  # it may take as long as it asks for
    geollava("train", path.with_name("recipe.yaml"), alone=False)


def validate(path: Path) -> None:
    geollava("validate", path, reports=True)


def verify(path: Path) -> None:
    from tokenprune import cli

    run(cli.main, "verify", MODEL, path, "What?", "--new-tokens", 1, names=(path.name,))
