"""What sharded weights (FSDP2) ask of a model whose processes see images of different sizes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's weights lie spread over processes, to be gathered as it runs."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def whole(weight: Tensor) -> Tensor:
    """A weight that is read outside its module's forward, gathered where it is sharded."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def blank_crops(crops: int, device: torch.device) -> int:
    """How many more crops another process has than the `crops` of this one.

    Every chunk that passes the tower gathers its weights from all processes: all have to run
    equally many, or they wait for each other forever.
    """
    most = torch.tensor(crops, device=device)
    distributed.all_reduce(most, op=distributed.ReduceOp.MAX)
    return int(most) - crops
