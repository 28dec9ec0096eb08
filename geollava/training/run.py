"""`geollava train config.yaml`: one run, from its configuration to the folder of its result."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from tqdm.auto import tqdm

from geollava.model.checkpoint import resolve_folder
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.model.processing import GeoLlavaProcessor
from geollava.training.config import TrainConfig
from geollava.training.export import export_run, push_checkpoint
from geollava.training.folder import check_output, is_main_process, write_run
from geollava.training.loading import load_model, read_model_config
from geollava.training.machine import check_machine
from geollava.training.packs import Packs, pack
from geollava.training.plan import plan_of
from geollava.training.samples import Asking, SampleAnswers, score_of
from geollava.training.tokens import tokenize_rows
from geollava.training.trainer import Evaluation, build_trainer
from geollava.training.validation import CheckedRow, load_checked


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Trains, and writes the result -> the folder of the trained model.

    Everything that can be wrong with the configuration and the data is found before a weight is
    loaded.

    Args:
        resume: go on from the last whole checkpoint in `config.output`; the losses are those of a
            run that was never interrupted. With more epochs or steps than before a run that ended
            goes on.

    Raises:
        ValueError, NotImplementedError, ImportError: what is wrong, with its place.
    """
    check_machine(config, resume)
    last = check_output(config, resume)
    folder = resolve_folder(config.model)
    model_config = read_model_config(config, folder)
    processor = GeoLlavaProcessor.from_pretrained(folder, num_keep=model_config.num_keep)
    rows = load_rows(config, config.data.files, processor)
    packs = load_packs(config, rows, processor, model_config)
    held_out = load_held_out(config, rows, processor, model_config)
    if is_main_process():
        write_run(config)
        print(plan_of(config, model_config, packs.num_rows, packs.sizes), flush=True)

    model = load_model(config, folder, model_config)
    if config.data.encode_once:
        for some in [packs] if held_out is None else [packs, held_out.packs]:
            encode_images(model, some)
    first = [row for row, _ in rows[: config.samples.rows if config.samples is not None else 0]]
    samples = [SampleAnswers(config, first, processor)] if first else []
    del rows
    trainer = build_trainer(config, model, packs, samples, held_out)
    trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
    target = config.output / "model"
    if trainer.is_world_process_zero():
        if resume and target.exists():  # of the run before it was extended
            shutil.rmtree(target)
        export_run(config.output, target, config.export)
        if config.push_to_hub is not None:
            print(push_checkpoint(target, config.push_to_hub), flush=True)
    trainer.accelerator.wait_for_everyone()
    return target


def load_rows(
    config: TrainConfig, files: Sequence[Path], processor: GeoLlavaProcessor
) -> list[CheckedRow]:
    """The good rows of some data files; says how many are left out.

    Raises:
        ValueError: a bad row, where they are refused.
    """
    report, rows = load_checked(
        files,
        config.data.image_folder,
        on_bad_rows=config.data.on_bad_rows,
        select_canvas=processor.image_processor.select_canvas,
        decode=config.data.decode_images,
    )
    if (bad := len(report.bad_rows)) and is_main_process():
        print(f"data: {bad} of {report.rows} rows are bad and left out", flush=True)
    return rows


def load_packs(
    config: TrainConfig,
    checked: Sequence[CheckedRow],
    processor: GeoLlavaProcessor,
    model_config: GeoLlavaConfig,
    *,
    alone: bool = False,
) -> Packs:
    """Rows, tokenized and grouped; of their words nothing stays in memory.

    Args:
        alone: each row is a pack of its own.

    Raises:
        ValueError: a row that is too long, where bad rows are refused.
    """

    @cache  # images of one data set have few sizes, and the choice among canvases takes a while
    def crops_of(size: tuple[int, int]) -> int:
        return processor.image_processor.choose_canvas(size).crops

    rows = tokenize_rows(
        processor,
        ((row, list(map(crops_of, sizes))) for row, sizes in checked),
    )
    limit = model_config.text_config.max_position_embeddings
    fitting = [row for row in rows if row.size.tokens <= limit]
    if len(fitting) < len(rows):
        long = next(row for row in rows if row.size.tokens > limit)
        message = (
            f"data: the row with id {long.id} has {long.size.tokens:,} tokens, "
            f"more than the model's {limit:,} positions"
        )
        if config.data.on_bad_rows == "refuse" or not fitting:
            raise ValueError(message)
        if is_main_process():
            print(f"data: {len(rows) - len(fitting)} rows are too long and left out", flush=True)
    sizes = [row.size for row in fitting]
    most = None if alone else config.data.pack_visual_tokens
    groups = pack(sizes, most, limit, config.seed)
    return Packs([[fitting[index] for index in group] for group in groups], processor)


def load_held_out(
    config: TrainConfig,
    trained: Sequence[CheckedRow],
    processor: GeoLlavaProcessor,
    model_config: GeoLlavaConfig,
) -> Evaluation | None:
    """What the run is evaluated on, or None.

    Raises:
        ValueError: a row of it is trained on, or is bad.
    """
    settings = config.evaluation
    if settings is None:
        return None
    rows = load_rows(config, settings.files, processor)
    both = {row.id for row, _ in trained} & {row.id for row, _ in rows}
    if both:
        raise ValueError(
            f"evaluation: no row may be trained on, {len(both)} are, such as the id {min(both)}"
        )
    packs = load_packs(config, rows, processor, model_config, alone=True)
    asked = [row for row, _ in rows[: settings.asked]]
    asking = Asking(config, processor, settings.max_new_tokens)
    return Evaluation(packs, lambda model: score_of(asking.ask(model, asked)), settings.patience)


def encode_images(model: GeoLlavaForConditionalGeneration, packs: Packs) -> None:
    """Puts every image through the tower once, before training begins."""
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")).eval()
    read = packs.processor.image_processor
    with torch.no_grad():
        for path in tqdm(packs.images, "images", leave=False, disable=None):
            crops = read([path])["pixel_values"]
            packs.encoded[path] = model.encode_crops(crops).features.cpu()
