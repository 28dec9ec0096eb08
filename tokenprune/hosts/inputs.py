"""What a host is called with: its images, its cache, and what cannot be right."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.applied import Applied
from tokenprune.hosts.compat import (
    ENCODER_OUTPUTS,
    Call,
    past_length,
    require,
)
from tokenprune.hosts.encoder import EncodedImages
from tokenprune.hosts.memory import Memory
from tokenprune.hosts.prompt import LastPrompt, Prompt, Shown, layouts_of, prompt_ends, real_columns
from tokenprune.hosts.sequence import edge_padding
from tokenprune.hosts.tower import needs_of_tower
from tokenprune.hosts.videos import IMAGE, VIDEO, Modality, Videos
from tokenprune.log import refuse


@dataclass
class Calls:
    """How a host and its language model are called, for as long as a reduction is in force.

    Attributes:
        in_layers: every layer is hooked, too.
    """

    adapter: Adapter
    host: Call
    language: Call
    in_force: bool = True
    in_layers: bool = False

    @property
    def language_model(self) -> nn.Module:
        return self.adapter.language_model


@dataclass(frozen=True)
class Filled:
    """That the last forward left a cache behind: the next one may be meant to go on in it."""

    rows: int
    columns: int


class PerThread(threading.local):
    """What one thread's forwards leave for its next.

    Attributes:
        encoded: what was encoded last, by the name of its modality.
    """

    last_prompt: LastPrompt | None = None
    filled: Filled | None = None

    def __init__(self) -> None:
        self.encoded: dict[str, EncodedImages] = {}


@dataclass(frozen=True)
class Inputs:
    """Of one forward of a host.

    Attributes:
        given: all arguments by name.
        ids: [B, L] input_ids, or [B, L, D] inputs_embeds in their stead.
        cache: or None.
        past: columns of the whole sequence that the cache stands for.
        placeholders: [B, L] bool where images or videos come, else None.
        shown: the same for each modality that comes, by name.
        encoded_before: what the host is given in place of pixels, by name.
    """

    given: Mapping[str, Any]
    ids: Tensor
    cache: Any
    past: int
    placeholders: Tensor | None
    shown: Mapping[str, Tensor]
    encoded_before: Mapping[str, Any]

    @property
    def mask(self) -> Any:
        return self.given.get("attention_mask")

    def filled(self, columns: int) -> Filled:
        return Filled(len(self.ids), columns)


def read_inputs(
    given: Mapping[str, Any], calls: Calls, applied: Applied, thread: PerThread
) -> Inputs:
    """Reads the arguments of a host, and raises where tokens would stay or go without a word."""
    cache = calls.host.cache(given)
    ids = given["inputs_embeds" if given.get("input_ids") is None else "input_ids"]
    outputs = calls.adapter.encoded_before(given)
    shown = find_placeholders(given, outputs, cache, calls.adapter, applied.strict)
    placeholders = torch.stack([*shown.values()]).any(0) if shown else None
    inputs = Inputs(given, ids, cache, past_length(cache), placeholders, shown, outputs)
    memory = Memory.of(cache) if inputs.past else None
    if memory is not None:
        check_mask_of_step(inputs, memory)
        no_positions = given.get("position_ids") is None and calls.adapter.positions_need_grid
        if placeholders is not None and no_positions:
            raise NotImplementedError(
                "new images after a shortened prompt need explicit position_ids in this model"
            )
    if applied.strict:
        refuse_lost_cache(inputs, memory, calls.host, thread.filled)
    thread.filled = None
    if placeholders is None and not inputs.past:
        applied.last.kept_positions = all_positions(ids, inputs.mask)
        applied.last.columns = None
    return inputs


def all_positions(ids: Tensor, mask: Any) -> list[Tensor]:
    real = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        real = ~edge_padding(mask.to(real.device))[0]
    return [row.nonzero()[:, 0] for row in real]


def check_mask_of_step(inputs: Inputs, memory: Memory) -> None:
    mask, expected = inputs.mask, inputs.past + inputs.ids.shape[1]
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] != expected:
        raise ValueError(
            f"attention_mask must have {expected} columns, those of the whole sequence, of which "
            f"the cache stands for {inputs.past}, got {mask.shape[1]}"
        )


def find_placeholders(
    given: Mapping[str, Any],
    outputs: Mapping[str, Any],
    cache: Any,
    adapter: Adapter,
    strict: bool,
) -> dict[str, Tensor]:
    """[B, L] bool for each modality that comes, by name."""
    coming = [one.name for one in (IMAGE, VIDEO) if comes(one, given, outputs)]
    sources = {one.name: source for one, source in adapter.sources() if one.name in coming}
    videos_pass = VIDEO.name in coming and VIDEO.name not in sources
    if videos_pass:
        message = (
            f"tokens of videos are not reduced in {type(adapter.model).__name__}; strict=False "
            "lets them pass as they are"
        )
        refuse(strict, NotImplementedError(message))
    if (hidden := hidden_tokens(given, adapter, coming, past_length(cache))) is not None:
        refuse(strict, hidden)
    if not sources:
        return {}
    if getattr(cache, "is_compileable", False):
        raise NotImplementedError(
            "a static cache has its length fixed for the whole prompt; use the default, dynamic"
        )
    check_mask_and_positions(given)
    return {name: marks_of(given, adapter, source) for name, source in sources.items()}


def comes(modality: Modality, given: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
    return given.get(modality.pixels) is not None or outputs.get(modality.name) is not None


def marks_of(given: Mapping[str, Any], adapter: Adapter, source: Adapter | Videos) -> Tensor:
    """[B, L] bool, the placeholders in input_ids, or in inputs_embeds in their stead."""
    ids = given.get("input_ids")
    if ids is not None:
        return torch.eq(ids, source.token_id)
    embeddings = given["inputs_embeds"]
    placeholder = adapter.model.get_input_embeddings()(
        torch.tensor(source.token_id, device=embeddings.device)
    )
    return torch.eq(embeddings, placeholder).all(-1)


def hidden_tokens(
    given: Mapping[str, Any], adapter: Adapter, coming: Sequence[str], past: int
) -> Exception | None:
    """What is wrong where visual tokens may be hidden in a call without what they show."""
    ids = given.get("input_ids")
    if ids is None:
        if coming or past or given["inputs_embeds"].shape[1] == 1:
            return None
        return NotImplementedError(
            "inputs_embeds without images: visual tokens cannot be told from text, nothing "
            "would be removed. Pass input_ids with pixel_values; strict=False lets it pass"
        )
    for modality, source in adapter.sources():
        # Some hosts mark the frames of videos as images.
        if past or modality.name in coming or (modality is IMAGE and coming):
            continue
        if marks := int((ids == source.token_id).sum()):
            return ValueError(
                f"input_ids hold {marks} placeholders for {modality.name} tokens, but no "
                f"{modality.name} came: expected {modality.pixels} or {ENCODER_OUTPUTS}, "
                f"got {', '.join(sorted(given))}"
            )
    return None


def check_mask_and_positions(given: Mapping[str, Any]) -> None:
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if mask is None and positions is not None and (positions.ndim == 2 or len(positions) == 4):
        text = positions[0] if positions.ndim == 3 else positions
        if bool((text.diff(dim=-1) < 0).any()):
            raise NotImplementedError(
                "sequences packed into one row are not supported while visual tokens are "
                "removed; pad them into a batch"
            )
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise NotImplementedError(
            "attention_mask must be [B, L] while visual tokens are removed, got "
            + (f"shape {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__)
        )


def refuse_lost_cache(
    inputs: Inputs, memory: Memory | None, call: Call, filled: Filled | None
) -> None:
    """Raises where a step would go on from nothing, for want of its cache or our memory on it.

    A mask says of how many columns the step is the end. Without one, a single token or
    positions beyond what the forward before has cached are taken for a step.
    """
    given, (batch, length) = inputs.given, inputs.ids.shape[:2]
    mask, positions = inputs.mask, given.get("position_ids")
    columns = mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if inputs.past:
        if memory is None and columns not in (None, inputs.past + length):
            raise RuntimeError(
                f"attention_mask must have {inputs.past + length} columns, those of the cache "
                f"and {length} more, got {columns}: this cache is not the one that was filled"
            )
        return
    goes_on = columns is not None and columns > length
    no_cache = inputs.cache is None and inputs.placeholders is None
    if not goes_on and no_cache and filled is not None:
        new = filled.rows != batch or given.get("use_cache") is False
        far = isinstance(positions, Tensor) and int(positions.min()) >= filled.columns
        goes_on = not new and (length == 1 or far)
    if goes_on:
        before = f", the forward before filled one of {filled.columns}" if filled else ""
        raise RuntimeError(
            f"{call.name} was called for {length} more columns without a cache{before}: taken "
            f"for a new prompt, they would continue nothing. Pass the cache as "
            f"{call.cache_name}; for a new prompt a mask of its own length, or use_cache=False"
        )


def check_cache(given: Mapping[str, Any], calls: Calls, inputs: Inputs) -> Any:
    """The language model's cache: what the host was given is what it goes on with."""
    cache, name = calls.language.cache(given), calls.language.name
    embeddings = given.get("inputs_embeds")
    require(
        isinstance(embeddings, Tensor),
        f"{name} must be called with inputs_embeds, got {type(embeddings).__name__}",
    )
    past = past_length(cache)
    require(
        past == inputs.past,
        f"{name} must be called with the cache of {calls.host.name}, which holds "
        f"{inputs.past} columns, got one of {past}",
    )
    return cache


def find_prompt(
    inputs: Inputs,
    given: Mapping[str, Any],
    head: Mapping[str, Any],
    cache: Any,
    calls: Calls,
    applied: Applied,
    thread: PerThread,
) -> Prompt:
    """The prompt with images, as the language model is given it."""
    assert inputs.placeholders is not None  # who calls has looked
    placeholders = inputs.placeholders.to(given["inputs_embeds"].device)
    shown = [
        Shown(source, find_encoded(inputs, modality, source, applied, thread), marks)
        for modality, source in calls.adapter.sources()
        if (marks := inputs.shown.get(modality.name)) is not None
    ]
    layouts, tower = layouts_of(shown)
    now = real_columns(inputs.mask, placeholders)
    last = thread.last_prompt
    if last is not None and last.goes_on_in(inputs.ids):
        last.length += 1
    else:
        ends = prompt_ends(now, placeholders, head)
        last = LastPrompt(inputs.ids.detach(), inputs.ids.shape[1], ends)
        thread.last_prompt = last
    return Prompt(
        placeholders=placeholders,
        now=now,
        mask=inputs.mask,
        past=inputs.past,
        cache=cache,
        layouts=layouts,
        tower=tower,
        ends=last.ends,
        stopwatches=[watch for one in shown for watch in one.encoded.stopwatches],
    )


def find_encoded(
    inputs: Inputs,
    modality: Modality,
    source: Adapter | Videos,
    applied: Applied,
    thread: PerThread,
) -> EncodedImages:
    name = modality.name
    encoded, output = thread.encoded.get(name), inputs.encoded_before.get(name)
    if output is not None and (encoded is None or not encoded.is_of(output)):
        if encoded is not None and ENCODER_OUTPUTS in inputs.given and encoded.has_piece(output):
            raise NotImplementedError(
                "the prompt comes in pieces that split images (prefill_chunk_size); leave that "
                "unset, what enters the language model is short already"
            )
        # Encoded by the caller, outside of our sight.
        features = source.per_image(source.features(output), inputs.given)
        sizes = source.sizes(inputs.given, features, inputs.given.get("input_ids"))
        encoded = EncodedImages(sizes, source.lengths(features), None, lambda: None)
    if encoded is None:
        raise RuntimeError(
            f"the host did not encode its {name}s in {modality.encoder}, the adapter does not "
            "fit it"
        )
    if missing := set(needs_of_tower(applied.method)) - {*encoded.needs}:
        needed = [need.name for need in needs_of_tower(applied.method) if need in missing]
        names = ", ".join(dict.fromkeys(needed))
        raise ValueError(
            f"{type(applied.method).__name__} needs {names} of the vision tower, "
            f"got {name}s that were encoded before; pass {modality.pixels}"
        )
    return encoded
