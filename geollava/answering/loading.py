"""A checkpoint -> a model and a processor that fit each other, where they are to run."""

from __future__ import annotations

from typing import Any

import torch

from geollava.model.checkpoint import resolve_folder
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.model.processing import GeoLlavaProcessor
from geollava.model.token_reduction import check_method


def load(
    folder: str,
    num_keep: int | None,
    device: str,
    dtype: str,
    method: str | None = None,
) -> tuple[GeoLlavaForConditionalGeneration, GeoLlavaProcessor]:
    """Model and processor of a checkpoint; the weights are checked before the tokenizer is read.

    Args:
        folder: of the checkpoint, or its hub name.
        num_keep: instead of the checkpoint's own.
        device, dtype: "auto" is the GPU where there is one, and bfloat16 there.
        method: of token reduction, instead of the checkpoint's own.

    Raises:
        ValueError: no such checkpoint, device or method.
    """
    target = find_device(device)
    if dtype == "auto":
        dtype = "float32" if target.type == "cpu" else "bfloat16"

    checkpoint = resolve_folder(folder)
    config = GeoLlavaConfig.from_pretrained(checkpoint)
    if num_keep is not None:
        config.num_keep = num_keep
        config.check()
    if method is not None:
        check_method(method)
        config.reduction_method = method
    network = GeoLlavaForConditionalGeneration.from_pretrained(
        checkpoint, config=config, dtype=getattr(torch, dtype)
    )
    processor = GeoLlavaProcessor.from_pretrained(checkpoint, num_keep=config.num_keep)
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
