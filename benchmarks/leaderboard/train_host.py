"""Trains a host's language model and projector on composites, resumable, from one seed.

It sees all tokens and no reduction, as the models do that methods are published for: no method is
favored by training, and all of them are handed fewer tokens than the host was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from benchmarks.leaderboard.composite import PER_IMAGE, WORDS, Question, make_composite
from benchmarks.leaderboard.fetch import CACHE
from benchmarks.leaderboard.host import NUMBERS, build_host, ids_of
from benchmarks.leaderboard.train_features import SIDE, train_features

PICTURES, BATCH, STEPS, CHECKPOINT = 1200, 16, 400, 25
RATE, WARMUP, COOLDOWN = 2e-3, 40, 0.3  # learning rate, steps it grows, share in which it sinks


def trained_parts(host: LlavaForConditionalGeneration) -> dict[str, nn.Parameter]:
    """What is trained, by name: everything but the tower."""
    return {
        name: parameter for name, parameter in host.named_parameters() if "vision_tower" not in name
    }


@cache
def training_questions(pictures: int) -> list[tuple[Question, ...]]:
    """Of each training picture its `PER_IMAGE` questions."""
    return [make_composite("train", number).questions for number in range(pictures)]


def encoded_questions(pictures: int) -> tuple[Tensor, Tensor]:
    """[pictures, PER_IMAGE * WORDS] ids of questions, [pictures, PER_IMAGE] of answers."""
    asked = training_questions(pictures)
    return (
        torch.tensor([[word for one in of for word in ids_of(one.text)] for of in asked]),
        torch.tensor([[NUMBERS[one.answer] for one in of] for of in asked]),
    )


def packed_mask(num_tokens: int) -> tuple[Tensor, Tensor]:
    """Additive mask [L, L] and positions [L] of a picture and its questions side by side.

    A question sees the picture and itself, and stands where it would alone.
    """
    groups = torch.arange(PER_IMAGE).repeat_interleave(WORDS)
    groups = torch.cat([groups.new_full((num_tokens,), -1), groups])
    seen = (groups[:, None] == groups) | (groups == -1)
    seen &= torch.ones_like(seen).tril()
    words = (num_tokens + torch.arange(WORDS)).repeat(PER_IMAGE)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return mask, torch.cat([torch.arange(num_tokens), words])


def train_host(
    seed: int,
    folder: Path = CACHE / "hosts",
    *,
    steps: int = STEPS,
    side: int = SIDE,
    features: Callable[[], Tensor] = lambda: train_features(PICTURES),
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> LlavaForConditionalGeneration:
    """The host of a seed, trained to the end, from its newest checkpoint where it has one.

    Args:
        features: gives [pictures, side * side, D], called where training is not finished.
        progress: called with (step, loss) at every checkpoint.
    """
    host = build_host(side, seed)
    parts = trained_parts(host)
    path = folder / f"{seed}.safetensors"
    optimizer = torch.optim.AdamW(parts.values(), lr=RATE, weight_decay=0.01)
    done = restore(path, parts, optimizer) if path.exists() else 0
    if done >= steps:
        return host
    folder.mkdir(parents=True, exist_ok=True)
    states = features()
    if not done:
        standardize(host.model.multi_modal_projector, states.float(), seed)
    ids, answers = encoded_questions(len(states))
    mask, positions = packed_mask(side * side)
    model, per_epoch = host.model, max(1, len(states) // BATCH)
    ends = side * side + WORDS * torch.arange(1, PER_IMAGE + 1) - 1
    for step in range(done, steps):
        generator = torch.Generator().manual_seed(1000 * seed + step // per_epoch)
        order = torch.randperm(len(states), generator=generator)
        chosen = order[BATCH * (step % per_epoch) :][:BATCH]
        optimizer.param_groups[0]["lr"] = RATE * min(
            1, (step + 1) / WARMUP, (steps - step) / (COOLDOWN * steps)
        )
        seen = model.multi_modal_projector(states[chosen].float())
        words = model.language_model.embed_tokens(ids[chosen])
        hidden = model.language_model(
            inputs_embeds=torch.cat([seen, words], dim=1),
            attention_mask=mask.expand(len(chosen), 1, -1, -1),
            position_ids=positions.expand(len(chosen), -1),
            use_cache=False,
        ).last_hidden_state
        logits = host.lm_head(hidden[:, ends])
        loss = functional.cross_entropy(logits.flatten(0, 1), answers[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parts.values(), 1.0)
        optimizer.step()
        if (step + 1) % CHECKPOINT == 0 or step + 1 == steps:
            save(path, step + 1, parts, optimizer)
            progress(step + 1, loss.item())
    return host


@torch.no_grad()
def standardize(projector: Any, states: Tensor, seed: int) -> None:
    """Lets a projector begin as if features had mean 0 and deviation 1 in each of D channels."""
    mean, deviation = states.mean((0, 1)), states.std((0, 1)) + 1e-6
    generator = torch.Generator().manual_seed(seed)
    for linear in (projector.linear_1, projector.linear_2):
        linear.weight.normal_(0, linear.in_features**-0.5, generator=generator)
        linear.bias.zero_()
    projector.linear_1.weight /= deviation
    projector.linear_1.bias -= projector.linear_1.weight @ mean


def save(
    path: Path, step: int, parts: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    tensors = {"step": torch.tensor(step)}
    for name, parameter in parts.items():
        tensors[name] = parameter.detach()
        for kind, value in optimizer.state[parameter].items():
            tensors[f"{kind}/{name}"] = torch.as_tensor(value)
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(path)


def restore(path: Path, parts: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """The steps that a checkpoint has seen."""
    tensors = load_file(path)
    for name, parameter in parts.items():
        parameter.data.copy_(tensors[name])
        optimizer.state[parameter] = {
            key.split("/")[0]: value for key, value in tensors.items() if key.endswith(f"/{name}")
        }
    return int(tensors["step"])
