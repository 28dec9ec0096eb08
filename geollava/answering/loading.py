"""A checkpoint -> a model and a processor that fit each other, where they are to run."""

from __future__ import annotations

from typing import Any

import torch

from geollava.model.checkpoint import resolve_folder
from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.model.processing import GeoLlavaProcessor


def load(
    folder: str, device: str = "auto", dtype: str = "auto"
) -> tuple[GeoLlavaForConditionalGeneration, GeoLlavaProcessor]:
    """Model and processor of a checkpoint; the weights are checked before the tokenizer is read.

    Args:
        folder: of the checkpoint, or its hub name.
        device, dtype: "auto" is the GPU where there is one, and bfloat16 there.

    Raises:
        ValueError: no such checkpoint or device.
    """
    target = find_device(device)
    if dtype == "auto":
        dtype = "float32" if target.type == "cpu" else "bfloat16"
    checkpoint = resolve_folder(folder)
    network = GeoLlavaForConditionalGeneration.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype)
    )
    processor = GeoLlavaProcessor.from_pretrained(checkpoint)
    processor.check_template()  # before any image is read
    return network.to(target).eval(), processor


def find_device(device: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {device} is not available: {str(error).strip().splitlines()[0]}"
        ) from error
    return target


def check_pair(model: Any, processor: Any) -> None:
    """The processor must mark images as the model expects them."""
    for name in ("image_token_id", "video_token_id"):
        expected, got = getattr(model.config, name), getattr(processor, name)
        if expected != got:
            source = processor.tokenizer.name_or_path or "the processor"
            raise ValueError(f"{source}: the tokenizer must have {name} = {expected}, got {got}")
