"""Does an affinity head that gets a gradient keep more of what is small than one that gets none?

    python examples/small_model/learn_head.py RESULT.json

The published head ends in an argmax and stays as it was made. Here heads begin at random too. One
half stays so; the other learns through `assignment="straight_through"`, together with a linear
reader of the kept tokens, to tell how many things of each kind are in a crop. Nothing says where
they are. The tower is the small model's, and frozen. Counted is the share of things whose own token
is kept, 24 of 576, in crops that were not learned from.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from parts import GRID, THINGS
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from tower import make_crops

from geollava import GeoLlavaForConditionalGeneration
from geollava.model.default_model import default_checkpoint
from geollava.model.token_reduction import AffinityHead
from tokenprune import ReducedTokens
from tokenprune.ops import background_anchored

T_95 = {3: 4.303, 5: 2.776, 8: 2.365, 10: 2.262}  # Student's, two-sided, by number of seeds
NUM_KEEP = 24


def encode(model: GeoLlavaForConditionalGeneration, seeds: range) -> tuple[Tensor, Tensor]:
    """([B, 1 + 576, D] tower output, [B, 576] things) of the crops of some crowded scenes."""
    hidden, things = [], []
    for seed in seeds:
        crops, labels = make_crops(seed, 1.3)
        with torch.inference_mode():
            hidden.append(model.model.vision_tower(model.prepare_pixels(crops)).bfloat16())
        things.append(labels["thing"])
    return torch.cat(hidden), torch.cat(things)


def reduce(
    model: GeoLlavaForConditionalGeneration, head: AffinityHead, hidden: Tensor
) -> ReducedTokens:
    anchor = model.model.vision_tower.anchor
    hidden = hidden.float()
    return background_anchored(
        hidden[:, 1:],
        hidden[:, 0],
        (GRID, GRID),
        head.dw.weight,
        head.pw.weight,
        head.pw.bias,
        anchor.q_proj.weight.detach(),
        anchor.q_proj.bias.detach(),
        anchor.v_proj.weight.detach(),
        anchor.v_proj.bias.detach(),
        NUM_KEEP,
        assignment="straight_through" if torch.is_grad_enabled() else "hard",
    )


def share_kept(
    model: GeoLlavaForConditionalGeneration, head: AffinityHead, hidden: Tensor, things: Tensor
) -> float:
    with torch.no_grad():
        kept = reduce(model, head, hidden)
    mask = torch.zeros_like(things, dtype=torch.bool).scatter(1, kept.keep_indices, kept.valid)
    return mask[things > 0].float().mean().item()


def learn(
    model: GeoLlavaForConditionalGeneration,
    head: AffinityHead,
    hidden: Tensor,
    things: Tensor,
    steps: int,
    console: Console,
) -> None:
    width = hidden.shape[2]
    reader = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1 + len(THINGS)))
    parameters = [*head.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, 3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, cycle_momentum=False)
    for step in range(steps):
        chosen = torch.randint(len(hidden), (16,))
        kept = reduce(model, head, hidden[chosen])
        seen = reader(kept.features).softmax(2) * kept.valid[..., None]
        counts = functional.one_hot(things[chosen], 1 + len(THINGS)).sum(1)[:, 1:]
        loss = functional.smooth_l1_loss(seen[:, :, 1:].sum(1), counts.float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            console.print(f"  step {step}: loss {loss.item():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(T_95))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", default=str(default_checkpoint()))
    options = parser.parse_args()

    console = Console(stderr=True, highlight=False)
    model = GeoLlavaForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32)
    model.eval().requires_grad_(False)
    first = 2 * 10**6
    learned_from, held_out = (
        encode(model, range(first, first + 12)),
        encode(model, range(first + 12, first + 18)),
    )
    rows = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        head = AffinityHead(model.config.vision_config.hidden_size)
        frozen = share_kept(model, head, *held_out)
        learn(model, head, *learned_from, options.steps, console)
        rows.append({"seed": seed, "frozen": frozen, "learned": share_kept(model, head, *held_out)})
        console.print(rows[-1])
    table = Table("things kept", "mean", "95 % interval over seeds", box=None, padding=(0, 2, 0, 0))
    result: dict[str, object] = {"rows": rows, "things": int((held_out[1] > 0).sum())}
    for name in ("frozen", "learned"):
        values = [row[name] for row in rows]
        mean = statistics.mean(values)
        half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
        result[name] = {"mean": mean, "interval": [mean - half, mean + half]}
        table.add_row(name, f"{mean:.1%}", f"{mean - half:.1%} to {mean + half:.1%}")
    Console(highlight=False).print(table)
    options.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
