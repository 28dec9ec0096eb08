"""Loading a model to evaluate: ours, or any of transformers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from geollava.answering.session import Session
from geollava.evaluate.models.answerer import Answerer
from geollava.evaluate.models.geollava_model import GeoLlavaAnswerer
from geollava.evaluate.models.transformers_model import TransformersAnswerer
from geollava.model.checkpoint import read_json, resolve_folder
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.published import PUBLISHED_MODEL_TYPE
from tokenprune.hub import refuse_adapter

BLOCKS, BLOCK = 64, 2**16  # of a weight file, that tell one training's result from another's


def open_model(
    name: str,
    method: str | None,
    num_keep: int | None,
    device: str,
    dtype: str,
    attention: str | None = None,
) -> Answerer:
    """The model of a folder or hub name, reduced as asked.

    Args:
        attention: the implementation, as transformers names it; None is its choice.

    Raises:
        ValueError: no such model, method, attention, or a device that is not there.
    """
    folder = resolve_folder(name)
    config = read_json(folder / "config.json")
    if device == "auto" and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    answerer: Answerer
    if config.get("model_type") in (GeoLlavaConfig.model_type, PUBLISHED_MODEL_TYPE):
        answerer = GeoLlavaAnswerer(name, Session(folder, device=device, dtype=dtype))
    else:
        device = "cpu" if device == "auto" else device
        dtype = ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype
        refuse_adapter(folder)
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
            )
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{name} cannot be loaded: {reason}") from error
        answerer = TransformersAnswerer(name, model.to(device).eval(), processor)
    if attention is not None:
        try:
            answerer.model.set_attn_implementation(attention)
        except (ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"no attention {attention!r} here: {reason}") from error
    answerer.weights = digest_of(folder)
    answerer.reduce(method, num_keep)
    return answerer


def digest_of(folder: Path) -> str:
    """Tells checkpoints apart without reading them whole: a sample of every weight file."""
    known = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        known.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(BLOCK, size // BLOCKS)):
                file.seek(start)
                known.update(file.read(BLOCK))
    return known.hexdigest()[:16]
