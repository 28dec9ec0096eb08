"""Runs of the model, whole as it is or with tokens hidden."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import attention_implementation, check_language_model
from tokenprune.hosts.handle import Handle
from tokenprune.hosts.reduced import ReducedImages
from tokenprune.hosts.sequence import edge_padding
from tokenprune.hosts.verifying.hidden import (
    absent,
    first_gap,
    hide,
    moved_by_rounding,
    shifted,
    with_features,
)
from tokenprune.method import Method


@dataclass
class Run:
    """What a model said: logits of the prompt [B, L, V] and of each new token [B, T, V]."""

    prompt: Tensor
    steps: Tensor | None = None
    tokens: Tensor | None = None

    def equals(self, other: Run) -> bool:
        mine, theirs = (self.prompt, self.steps), (other.prompt, other.steps)
        return all(
            (one is None and two is None)
            or (one is not None and two is not None and torch.equal(one, two))
            for one, two in zip(mine, theirs, strict=True)
        )


@dataclass
class Kept:
    """What a reduction says that it did, in terms of the whole sequence.

    Attributes:
        rows: for each row its columns that remain.
        hidden: for each layer [B, L] bool, the visual tokens that it does not see; one entry for
            all layers where tokens leave before the first.
        images: the reduced features, where the method makes them.
    """

    rows: list[Tensor]
    hidden: list[Tensor]
    images: ReducedImages | None


@dataclass
class Runs:
    """The runs of one verification."""

    model: Any
    adapter: Adapter
    inputs: dict[str, Any]
    method: Method
    new_tokens: int

    def run(self) -> Run:
        prompt = self.forward()
        if not hasattr(self.model, "generate"):
            return Run(prompt)
        return dataclasses.replace(self.generate(), prompt=prompt)

    def forward(self) -> Tensor:
        """[B, L, V] logits; the last hidden states of a model without a head."""
        output = self.model(**self.inputs)
        logits: Tensor | None = getattr(output, "logits", None)
        return output.last_hidden_state if logits is None else logits

    def generate(self, tokens: Tensor | None = None, use_cache: bool = True) -> Run:
        """`new_tokens` greedy tokens, or the given ones [B, T], and the logits before each."""
        length = self.inputs["input_ids"].shape[1]
        choose = Words(self.adapter.config) if tokens is None else Given(tokens, length)
        output = self.model.generate(
            **self.inputs,
            max_new_tokens=self.new_tokens + 1,  # so that the last one has been read, too
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=use_cache,
            logits_processor=[choose],
            return_dict_in_generate=True,
            output_logits=True,
        )
        steps = torch.stack(output.logits, dim=1)
        return Run(steps[:, :0], steps, output.sequences[:, length:])

    def kept(self, handle: Handle) -> Kept:
        ids = self.inputs["input_ids"]
        placeholders = self.adapter.placeholders(ids)
        if self.method.in_layers:
            hidden = [
                torch.zeros_like(placeholders)
                if keep is None
                else placeholders & ~keep.to(ids.device)
                for keep in handle.outcome().by_layer
            ]
        else:
            remain = torch.zeros_like(placeholders)
            for row, columns in enumerate(handle.kept_positions):
                remain[row, columns.to(ids.device)] = True
            hidden = [placeholders & ~remain]
        return Kept(
            handle.kept_positions,
            hidden,
            handle.outcome().images if self.method.merges else None,
        )

    def columns(self, logits: Tensor, kept: Kept) -> list[Tensor]:
        """Of the whole sequence's logits, for each row those that remain."""
        return [row[columns.to(row.device)] for row, columns in zip(logits, kept.rows, strict=True)]

    def remaining(self, logits: Tensor, kept: Kept) -> list[Tensor]:
        """Of the shorter sequence's logits, for each row those without padding."""
        mask = self.inputs.get("attention_mask")
        pad_left = mask is None or edge_padding(mask)[1]
        counts = [len(columns) for columns in kept.rows]
        return [
            row[len(row) - count :] if pad_left else row[:count]
            for row, count in zip(logits, counts, strict=True)
        ]

    def reference(
        self,
        kept: Kept,
        run: Callable[[], Any],
        *,
        rounded: bool = False,
        shift: int = 0,
    ) -> Any:
        """What `run` gives on the whole model with tokens hidden.

        Args:
            rounded: the embeddings are moved by one rounding.
            shift: added to all positions from `first_gap` on.
        """
        placeholders = self.adapter.placeholders(self.inputs["input_ids"])
        language_model = self.adapter.language_model
        call = check_language_model(language_model)
        everywhere = not self.method.in_layers
        hidden = kept.hidden[0] if everywhere else kept.hidden[-1]

        def before_language_model(module: Any, args: Any, kwargs: Any) -> Any:
            given = call.named(args, kwargs)
            embeddings = given["inputs_embeds"]
            if kept.images is not None:
                known = self.adapter.known(given)
                known |= with_features(known, kept.images, placeholders)
                given = self.adapter.own(known)
            if rounded:
                given["inputs_embeds"] = moved_by_rounding(given["inputs_embeds"])
            if shift:
                given |= shifted(given, first_gap(hidden, kept.rows), shift)
            if everywhere:
                given["attention_mask"] = hide(
                    given.get("attention_mask"), hidden, embeddings, in_layer=False
                )
            return (), given

        def before_layer(unseen: Tensor, layer: Any, args: Any, kwargs: Any) -> Any:
            states, *rest = args or (kwargs.pop("hidden_states"),)
            flash = "flash" in attention_implementation(layer.self_attn)
            mask = hide(kwargs.get("attention_mask"), unseen, states, in_layer=not flash)
            return (states, *rest), kwargs | {"attention_mask": mask}

        with ExitStack() as stack:
            install = [(language_model, before_language_model)]
            if not everywhere:
                install += [
                    (layer, functools.partial(before_layer, unseen))
                    for layer, unseen in zip(self.adapter.decoder_layers, kept.hidden, strict=True)
                    if bool(unseen.any())
                ]
            if everywhere:
                stack.enter_context(absent(language_model, hidden))
            for module, hook in install:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            return run()


class Words:
    """Keeps greedy search away from the marks of images: a new one would have no features."""

    def __init__(self, config: Any) -> None:
        marks = [value for name, value in config.to_dict().items() if "_token_i" in name]
        self.marks = [mark for mark in marks if isinstance(mark, int)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        inside = [mark for mark in self.marks if 0 <= mark < scores.shape[1]]
        scores = scores.clone()
        scores[:, inside] = -torch.inf
        return scores


class Given:
    """Makes greedy search choose `tokens` [B, T] after a prompt of so many columns."""

    def __init__(self, tokens: Tensor, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.tokens[:, input_ids.shape[1] - self.length, None].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)
