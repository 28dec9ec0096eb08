"""What every operator asks of its arguments, and how it says no.

Shapes and ranges raise ValueError, dtypes raise TypeError, missing implementations raise
NotImplementedError; each message says what was expected and what came.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_shape(
    name: str, value: Tensor, shape: tuple[int, ...], form: str, *, like: Tensor
) -> None:
    """`value` is floating point, has exactly `shape` (written `form`) and lies beside `like`."""
    check_tensor(name, value)
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must be {form} = {list(shape)}, got {list(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    check_device(name, value, like)


def check_device(name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the features, got {value.device}")


def check_features(features: Tensor) -> None:
    check_tensor("features", features)
    if features.ndim != 3:
        raise ValueError(f"features must be [B, N, D], got shape {list(features.shape)}")
    if features.dtype not in FEATURE_DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in FEATURE_DTYPES)
        raise TypeError(f"features must be one of {expected}, got {features.dtype}")
    if 0 in features.shape[1:]:
        raise ValueError(f"features must have N >= 1 and D >= 1, got {list(features.shape)}")


def check_cls(cls: Tensor, features: Tensor) -> None:
    check_shape("cls", cls, (len(features), features.shape[2]), "[B, D]", like=features)


def check_of_patches(name: str, value: Tensor, form: str, features: Tensor) -> None:
    """`value` has one row for each patch, [B, N, any width], and lies beside the features."""
    check_tensor(name, value)
    if value.ndim != 3 or value.shape[2] == 0:
        raise ValueError(f"{name} must be {form}, got shape {list(value.shape)}")
    check_shape(name, value, (*features.shape[:2], value.shape[2]), form, like=features)


def check_text(name: str, text: Tensor, features: Tensor) -> None:
    """`text` has some rows as wide as the features, and lies beside them."""
    check_tensor(name, text)
    batch, _, width = features.shape
    if text.ndim != 3 or text.shape[1] == 0:
        raise ValueError(f"{name} must be [B, T, D] with T >= 1, got shape {list(text.shape)}")
    check_shape(name, text, (batch, text.shape[1], width), "[B, T, D]", like=features)


def check_int(name: str, value: object, *, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        span = f"between {low} and {high}" if high is not None else f"at least {low}"
        raise ValueError(f"{name} must be {span}, got {value}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_grid(grid_size: tuple[int, int], num_tokens: int, frames: int = 1) -> None:
    if not isinstance(grid_size, (tuple, list, torch.Size)) or len(grid_size) != 2:
        raise ValueError(f"grid_size must be (rows, cols), got {grid_size!r}")
    rows, cols = grid_size
    check_int("grid_size rows", rows, low=1)
    check_int("grid_size cols", cols, low=1)
    if frames * rows * cols != num_tokens:
        what = f"{rows} x {cols}" if frames == 1 else f"{rows} x {cols} in each of {frames} frames"
        raise ValueError(
            f"grid_size {what} = {frames * rows * cols} must equal the number of tokens N, "
            f"got N = {num_tokens}"
        )


def check_num_keep(num_keep: int | Tensor, num_tokens: int) -> None:
    if isinstance(num_keep, int) and not isinstance(num_keep, bool) and num_keep > num_tokens:
        raise ValueError(
            f"num_keep must be between 1 and the number of tokens N = {num_tokens}, got {num_keep}"
        )
    check_int("num_keep", num_keep, low=1)


def check_quotas(quotas: Tensor, features: Tensor) -> list[int]:
    """A quota per crop, [B] integers from 0 to N, as a list. Costs a synchronization on GPUs."""
    batch, num_tokens, _ = features.shape
    if quotas.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"num_keep must be int64 or int32 where it is a tensor, got {quotas.dtype}")
    if tuple(quotas.shape) != (batch,):
        raise ValueError(f"num_keep must be [B] = [{batch}], got {list(quotas.shape)}")
    values = quotas.tolist()
    if values and not 0 <= min(values) <= max(values) <= num_tokens:
        raise ValueError(
            f"num_keep must be between 0 and the number of tokens N = {num_tokens} for each crop, "
            f"got {min(values)} to {max(values)}"
        )
    return values


def check_indices(
    name: str, value: Tensor, shape: tuple[int, ...], form: str, *, high: int
) -> None:
    """`value` is int64, has exactly `shape`, and on the CPU is checked to lie in [0, high)."""
    check_tensor(name, value)
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {value.dtype}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must be {form} = {list(shape)}, got {list(value.shape)}")
    # Elsewhere a look at the values would be a synchronization, or a graph break.
    if value.device.type == "cpu" and value.numel() and not torch.compiler.is_compiling():
        low_seen, high_seen = (int(bound) for bound in value.aminmax())
        if low_seen < 0 or high_seen >= high:
            raise ValueError(
                f"{name} must lie in [0, {high}), got values from {low_seen} to {high_seen}"
            )


def check_finite(**tensors: Tensor | None) -> None:
    """Raises ValueError if a tensor [..., D] holds NaN or infinity. Costs one read of each.

    Summing over D first keeps the check O(N) in memory: a NaN or an infinity survives the sum.
    """
    for name, value in tensors.items():
        if value is None:
            continue
        wide = torch.promote_types(value.dtype, torch.float32)
        finite = value.detach().sum(-1, dtype=wide).isfinite()
        if not finite.all():
            rows = finite.flatten(1) if finite.ndim > 1 else finite[:, None]
            bad = int((~rows).any(1).sum())
            raise ValueError(
                f"{name} must be finite, got NaN or infinity in {bad} of {len(rows)} crops"
            )
