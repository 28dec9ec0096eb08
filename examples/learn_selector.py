"""Trains VisionSelector's scorer (arXiv 2510.16598) where the tokens that matter are known.

    python examples/learn_selector.py selector.safetensors

In a made-up image of 64 tokens each shows one of eight things; four tokens carry a mark, and the
question is how often each thing is marked. Nothing says which tokens are marked: the scorer learns
it through a differentiable top-k, from the reader's answers alone. As in the paper, tokens are
scaled by soft shares that sum to the budget, and a penalty that grows over the steps drives the
shares to 0 and 1. Printed is the share of marked tokens that are kept, in images that were not
learned from. It takes seconds on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tokenprune import VisionTokens, get_method
from tokenprune.methods.visionselector import WEIGHTS, VisionSelector

GRID, WIDTH, HIDDEN = (8, 8), 32, 16
NUM_TOKENS, NUM_KEEP, NUM_THINGS = 64, 4, 8
PENALTY = (0.1, 2.0)  # from the first step to the last, as in the official training


def soft_top_k(scores: Tensor, num_keep: int) -> Tensor:
    """[B, N] scores -> [B, N] shares in (0, 1) that sum to `num_keep`.

    Shares are sigmoid(scores + t), with t found by bisection for each row. The last line takes one
    step of Newton's method, which hardly moves t and gives it its gradient.
    """
    with torch.no_grad():
        low, high = -scores.amax(1, keepdim=True) - 10, -scores.amin(1, keepdim=True) + 10
        for _ in range(64):
            middle = (low + high) / 2
            short = (scores + middle).sigmoid().sum(1, keepdim=True) < num_keep
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    shares = (scores + middle).sigmoid()
    slope = (shares * (1 - shares)).sum(1, keepdim=True).detach().clamp(min=1e-9)
    excess = shares.sum(1, keepdim=True) - num_keep
    return (scores + middle - excess / slope).sigmoid()


def make_images(batch: int, looks: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """[B, N, D] tokens, [B, N] which are marked, [B, things] how often each thing is marked."""
    things = torch.randint(NUM_THINGS, (batch, NUM_TOKENS), generator=generator)
    drawn = torch.rand(batch, NUM_TOKENS, generator=generator).topk(NUM_KEEP).indices
    marked = torch.zeros(batch, NUM_TOKENS).scatter(1, drawn, 1.0)
    noise = 0.3 * torch.randn(batch, NUM_TOKENS, WIDTH, generator=generator)
    tokens = looks[things] + marked[..., None] * looks[NUM_THINGS] + noise
    counts = (functional.one_hot(things, NUM_THINGS) * marked[..., None]).sum(1)
    return tokens, marked.bool(), counts


def new_selector(generator: torch.Generator) -> VisionSelector:
    """A scorer whose scores are nearly equal, as in the paper: at first all tokens are read."""
    shapes = {"q_weight": (HIDDEN, WIDTH), "k_weight": (HIDDEN, WIDTH)}
    shapes |= {"q_bias": (HIDDEN,), "k_bias": (HIDDEN,)}
    weights = {
        name: (1e-2 * torch.randn(shape, generator=generator)).requires_grad_()
        for name, shape in shapes.items()
    }
    return VisionSelector(**weights)


def learn(
    selector: VisionSelector, looks: Tensor, steps: int, generator: torch.Generator
) -> list[float]:
    """Trains the scorer and a linear reader of the scaled tokens; the reader's losses."""
    reader = nn.Linear(WIDTH, NUM_THINGS)
    weights = [getattr(selector, name) for name in WEIGHTS]
    # The reader learns faster: the penalty must not settle on tokens before it can tell them apart.
    groups = [{"params": weights, "lr": 3e-3}, {"params": reader.parameters(), "lr": 2e-2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    losses = []
    for step in range(steps):
        tokens, _, counts = make_images(64, looks, generator)
        scores = selector.scores(tokens)
        shares = soft_top_k(scores, NUM_KEEP)
        loss = functional.mse_loss(reader((shares[..., None] * tokens).sum(1)), counts)
        losses.append(loss.item())
        hard = torch.zeros_like(shares).scatter(1, scores.topk(NUM_KEEP).indices, 1.0)
        penalty = PENALTY[0] + (PENALTY[1] - PENALTY[0]) * step / steps
        loss = loss + penalty * functional.binary_cross_entropy(shares, hard)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="the .safetensors file to write")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    looks = torch.randn(NUM_THINGS + 1, WIDTH, generator=generator)  # of the things, and the mark
    held_out, marked, _ = make_images(256, looks, generator)

    def report(name: str, method: object) -> None:
        kept = method.reduce(VisionTokens(held_out, GRID), NUM_KEEP).keep_indices
        print(f"{name}: {marked.gather(1, kept).float().mean().item():.1%} of marked tokens kept")

    selector = new_selector(generator)
    report("random", get_method("random"))
    report("untrained", selector)
    losses = learn(selector, looks, options.steps, generator)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    tensors = {name.replace("_", "_proj."): getattr(selector, name).detach() for name in WEIGHTS}
    save_file(tensors, options.weights)
    report("trained", VisionSelector.load(options.weights))


if __name__ == "__main__":
    main()
