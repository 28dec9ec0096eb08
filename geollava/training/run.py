"""`geollava train config.yaml`: one run, from its configuration to the folder of its result."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tqdm.auto import tqdm

from geollava.model.checkpoint import resolve_folder
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.model.processing import GeoLlavaProcessor
from geollava.training.config import TrainConfig
from geollava.training.export import export_run
from geollava.training.folder import check_output, is_main_process, write_run
from geollava.training.loading import load_model, read_model_config
from geollava.training.machine import check_machine
from geollava.training.packs import Packs, pack
from geollava.training.plan import plan_of
from geollava.training.rows import TrainingRow
from geollava.training.samples import SampleAnswers
from geollava.training.tokens import tokenize_rows
from geollava.training.trainer import build_trainer
from geollava.training.validation import load_checked


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Trains, and writes the result -> the folder of the trained model.

    Everything that can be wrong with the configuration and the data is found before a weight is
    loaded.

    Args:
        resume: go on from the last whole checkpoint in `config.output`; the losses are those of a
            run that was never interrupted.

    Raises:
        ValueError, NotImplementedError, ImportError: what is wrong, with its place.
    """
    check_machine(config, resume)
    last = check_output(config, resume)
    folder = resolve_folder(config.model)
    model_config = read_model_config(config, folder)
    processor = GeoLlavaProcessor.from_pretrained(folder, num_keep=model_config.num_keep)
    packs, first_rows = load_packs(config, processor, model_config)
    if is_main_process():
        write_run(config)
        print(plan_of(config, model_config, packs.num_rows, packs.sizes), flush=True)

    model = load_model(config, folder, model_config)
    if config.data.encode_once:
        encode_images(model, packs)
    samples = [SampleAnswers(config, first_rows, processor)] if config.samples is not None else []
    trainer = build_trainer(config, model, packs, samples)
    trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
    target = config.output / "model"
    if trainer.is_world_process_zero():
        export_run(config.output, target, config.export)
    trainer.accelerator.wait_for_everyone()
    return target


def load_packs(
    config: TrainConfig, processor: GeoLlavaProcessor, model_config: GeoLlavaConfig
) -> tuple[Packs, list[TrainingRow]]:
    """(packs, rows to sample): the rows of the configuration, checked, tokenized and grouped.

    Of the rows' words only those of the rows to sample stay in memory.

    Raises:
        ValueError: a bad row, or one that is too long, where they are refused.
    """
    report, checked = load_checked(
        config.data.files,
        config.data.image_folder,
        on_bad_rows=config.data.on_bad_rows,
        select_canvas=processor.image_processor.select_canvas,
        decode=config.data.decode_images,
    )

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
    skipped = len(report.bad_rows) + len(rows) - len(fitting)
    if skipped and is_main_process():
        print(f"data: {skipped} of {report.rows} rows are bad and left out", flush=True)
    groups = pack([row.size for row in fitting], config.data.pack_visual_tokens, limit, config.seed)
    packs = Packs([[fitting[index] for index in group] for group in groups], processor)
    first = config.samples.rows if config.samples is not None else 0
    return packs, [row for row, _ in checked[:first]]


def encode_images(model: GeoLlavaForConditionalGeneration, packs: Packs) -> None:
    """Puts every image through the tower once, before training begins."""
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")).eval()
    read = packs.processor.image_processor
    with torch.no_grad():
        for path in tqdm(packs.images, "images", leave=False, disable=None):
            crops = read([path])["pixel_values"]
            packs.encoded[path] = model.encode_crops(crops).features.cpu()
