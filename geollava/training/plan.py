"""What a run is going to do, said before it begins: rows -> packs -> steps, tokens, memory.

Memory is that of a step on fake tensors; see `fake_step.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from geollava.model.configuration import GeoLlavaConfig
from geollava.training.config import TrainConfig
from geollava.training.fake_step import memory
from geollava.training.tokens import Size


def steps_of(config: TrainConfig, packs: int, processes: int) -> int:
    """Optimizer steps of a run over so many packs."""
    per_epoch = math.ceil(math.ceil(packs / processes) / config.accumulate)
    return config.max_steps or math.ceil(config.epochs * per_epoch)


def plan_of(
    config: TrainConfig, model_config: GeoLlavaConfig, rows: int, packs: Sequence[Size]
) -> str:
    """Two lines for whoever starts the run.

    Args:
        rows: that are trained on.
        packs: the tokens of each.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    tokens = [pack.tokens for pack in packs]
    crops = max(pack.visual_tokens for pack in packs) // model_config.num_keep
    steps = steps_of(config, len(packs), processes)
    in_a_step = sum(tokens) / len(tokens) * min(config.accumulate * processes, len(tokens))
    need = memory(config, model_config, max(tokens), crops)
    parts = ", ".join(f"{name} {value:.1f}" for name, value in need.items())
    return (
        f"data: {rows:,} rows -> {len(tokens):,} packs (data.pack_visual_tokens) -> "
        f"{steps:,} steps (accumulate, epochs, max_steps); about {in_a_step:,.0f} tokens a step, "
        f"at most {max(tokens):,} in a pack\n"
        f"memory: about {sum(need.values()):.1f} GiB on each device, without sharding: "
        f"{parts}"
    )
