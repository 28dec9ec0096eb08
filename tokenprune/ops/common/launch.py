"""Which implementation runs, and how a kernel is launched. Torch only: Triton is imported late."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
MAX_TOKENS = 4096  # that one program holds: a grid of 64 x 64
# a * b + c rounded once. Said outright, since Triton 3.10 is to change what it takes for granted:
# scores, attention and greedy distances round differently without it. Roots, the choice by given
# scores and means hold no such product, so that their bits do not depend on it.
ROUNDING = {"enable_fp_fusion": True}
CONFIGS = Path(__file__).parent / "launch_configs"


def interpreting() -> bool:
    """Whether Triton runs its kernels on CPU tensors, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def resolve_impl(impl: str, obstacle: Exception | None, *, on_gpu: bool) -> str:
    """The implementation that runs: a named one or an error, never another in its stead.

    Args:
        obstacle: why Triton cannot run this call, None if it can.
        on_gpu: "auto" takes Triton there, where nothing is in its way.
    """
    if impl not in ("auto", "reference", "triton"):
        raise ValueError(f"impl must be 'auto', 'reference' or 'triton', got {impl!r}")
    if impl == "triton" and obstacle is not None:
        raise obstacle
    if impl == "triton" or (impl == "auto" and on_gpu and obstacle is None):
        return "triton"
    return "reference"


def triton_obstacle(operator: str, tensor: Tensor) -> Exception | None:
    """What keeps Triton from running an operator on a tensor's device and dtype, or None."""
    if not TRITON_INSTALLED:
        return NotImplementedError(
            f"impl='triton' of ops.{operator} needs the extra triton: "
            "pip install 'tokenprune-vlm[triton]' (in a checkout: pip install '.[triton]')"
        )
    if tensor.device.type != "cuda" and not (tensor.device.type == "cpu" and interpreting()):
        return ValueError(
            f"impl='triton' of ops.{operator} expects tensors on a CUDA device, got {tensor.device}"
        )
    if tensor.dtype not in TRITON_DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in TRITON_DTYPES)
        return TypeError(f"impl='triton' of ops.{operator} expects {expected}, got {tensor.dtype}")
    return None


def tokens_obstacle(operator: str, tensor: Tensor) -> Exception | None:
    """As `triton_obstacle`, for a tensor [B, N, ...] of which one program holds all N."""
    obstacle = triton_obstacle(operator, tensor)
    if obstacle is None and tensor.shape[1] > MAX_TOKENS:
        return ValueError(
            f"impl='triton' of ops.{operator} expects at most {MAX_TOKENS} tokens, "
            f"got {tensor.shape[1]}"
        )
    return obstacle


def num_programs(device: torch.device) -> int:
    """Programs that run at a time where scratch allows one per multiprocessor."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch_config(kernel: str, tensor: Tensor) -> dict[str, Any]:
    """Block sizes, warps, stages and rounding of a kernel for a tensor's device and dtype."""
    if tensor.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(tensor.device)
        table = read_configs(nearest(10 * major + minor))
    else:
        table = read_configs("interpreter")
    by_dtype = table[kernel]
    kind = "float32" if tensor.dtype == torch.float32 else "half"
    return by_dtype.get(kind, by_dtype.get("any")) | ROUNDING


def launch_config_of_crops(kernel: str, tensor: Tensor, num_tokens: int) -> dict[str, Any]:
    """As `launch_config`, for a kernel whose program holds all tokens of a crop.

    Adds PADDED, a power of two that is at least N; a thread holds eight tokens at most.
    """
    size = padded(num_tokens)
    config = launch_config(kernel, tensor)
    return config | {"PADDED": size, "num_warps": max(config.get("num_warps", 1), size // (8 * 32))}


def padded(num_tokens: int) -> int:
    """The tokens that a program holds where it holds all: a power of two."""
    return max(16, 1 << (num_tokens - 1).bit_length())


@functools.cache
def nearest(capability: int) -> str:
    """The newest known architecture that is not newer than the device's, or the oldest known."""
    known = sorted(int(path.stem.removeprefix("sm_")) for path in CONFIGS.glob("sm_*.json"))
    fitting = [number for number in known if number <= capability]
    return f"sm_{fitting[-1] if fitting else known[0]}"


@functools.cache
def read_configs(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor as it is if its last dimension is dense, as kernels read it, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
