"""Where a reduction enters a host, and how it leaves again without a trace.

The host runs as it is, on its processor's full inputs. Its image features go to their placeholders
as always; on the way into the language model the columns of dropped tokens are taken out of
embeddings, positions and masks alike, and of the labels where there are any. Nothing is patched on
a class: module hooks and two attributes of the instance do it all.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from tokenprune.adapter import Adapter, ImageLayout
from tokenprune.hosts.cache_state import CacheState, rows_now
from tokenprune.hosts.compat import (
    ENCODER_OUTPUTS,
    Call,
    cache_of,
    check_head,
    check_host,
    check_language_model,
    image_features,
    is_filled,
    past_length,
    require,
)
from tokenprune.hosts.encoder import EncodedImages, WatchedEncoder
from tokenprune.hosts.layers import CutCache, CutStep, LayerReduction, prompt_ends
from tokenprune.hosts.reduction import ReducedImages, reduce_images
from tokenprune.hosts.sequence import KeptColumns, compact, edge_padding
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.method import LayerMethod

if TYPE_CHECKING:
    from tokenprune.apply import Handle

_hosts: weakref.WeakKeyDictionary[nn.Module, HostHooks] = weakref.WeakKeyDictionary()


def is_applied(host: nn.Module) -> bool:
    """Whether a handle is in force in a model without its head."""
    return host in _hosts


@dataclass
class Step:
    """One forward of the host."""

    cache: Any = None
    inputs: Tensor | None = None
    embeddings: Tensor | None = None
    language_cache: Any = None
    past: int = 0
    original_past: int = 0
    shift: Tensor | None = None
    attention_mask: Tensor | None = None
    placeholders: Tensor | None = None
    encoder_output: Any = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    columns: KeptColumns | None = None
    state: CacheState | None = None
    layers: LayerReduction | CutStep | None = None
    done: bool = False


@dataclass
class Prompt:
    """What was ranked by last: generation without a cache passes it again, one token longer."""

    inputs: Tensor
    length: int
    ends: Tensor

    def goes_on_in(self, inputs: Tensor) -> bool:
        begun = inputs[:, : self.inputs.shape[1]]
        return inputs.shape[1] == self.length + 1 and torch.equal(begun, self.inputs)


@dataclass(frozen=True)
class Filled:
    """That the last forward left a cache behind: the next one may be meant to go on in it."""

    rows: int
    columns: int


class HostHooks:
    """The hooks in one model, for as long as at least one handle is applied to it."""

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        self.model: Any = model
        self.adapter = adapter
        self.handles: list[Handle] = []
        self.step = Step()
        self.encoded: EncodedImages | None = None
        self._in_layers = False
        self._head_arguments: Mapping[str, Any] = {}
        self._last_prompt: Prompt | None = None
        self._filled: Filled | None = None
        self._checkpointed: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._undo: list[Any] = []

    @property
    def handle(self) -> Handle:
        """The newest handle is the one in effect."""
        return self.handles[-1]

    # -- coming and going -------------------------------------------------------------------------

    @staticmethod
    def enter(model: nn.Module, adapter: Adapter, handle: Handle) -> HostHooks:
        base = adapter.model
        hooks = _hosts.get(base) or HostHooks(base, adapter)
        try:
            if not hooks.handles:
                hooks._install()
                _hosts[base] = hooks
            if model is not base and hooks.model is base:
                hooks._install_head(model)
            if isinstance(handle.method, LayerMethod) and not hooks._in_layers:
                hooks._install_layers()
        except BaseException:
            hooks._uninstall_if_unused()
            raise
        hooks.handles.append(handle)
        return hooks

    def leave(self, handle: Handle) -> None:
        if handle in self.handles:
            self.handles.remove(handle)
        self._uninstall_if_unused()

    def _uninstall_if_unused(self) -> None:
        if not self.handles and self._undo:
            for undo in reversed(self._undo):
                undo()
            self._undo.clear()
            self.step, self.encoded, self._last_prompt = Step(), None, None
            _hosts.pop(self.adapter.model, None)

    def _install(self) -> None:
        self.adapter.check()
        base, language_model = self.adapter.model, self.adapter.language_model
        disable = torch.compiler.disable
        self._host_call: Call = check_host(base)
        self._language_call: Call = check_language_model(language_model)
        for handle in (
            base.register_forward_pre_hook(disable(self._before_host), with_kwargs=True),
            language_model.register_forward_pre_hook(
                disable(self._before_language_model), with_kwargs=True
            ),
            language_model.register_forward_hook(disable(self._after_language_model)),
            base.register_forward_hook(disable(self._after_host), always_call=True),
        ):
            self._undo.append(handle.remove)
        for name in self.adapter.restored:
            self._restore_later(base, name)
        self._replace(
            base,
            "get_image_features",
            WatchedEncoder(
                self.adapter,
                base.get_image_features,
                lambda: "attention" in self.handle.method.needs,
                lambda encoded: setattr(self, "encoded", encoded),
            ),
        )

    def _install_head(self, model: Any) -> None:
        check_head(model)
        hook = torch.compiler.disable(self._before_head)
        self._undo.append(model.register_forward_pre_hook(hook, with_kwargs=True).remove)
        self._replace(model, "_loss_function", self._loss(model.loss_function))
        self.model = model

    def _install_layers(self) -> None:
        """Only where a method works there: hooks in every layer would break compiled graphs."""
        self._in_layers = True
        for number, layer in enumerate(self.adapter.decoder_layers):
            hook = torch.compiler.disable(functools.partial(self._before_layer, number))
            self._undo.append(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def _restore_later(self, module: Any, name: str) -> None:
        if name in module.__dict__:
            value = module.__dict__[name]
            self._undo.append(lambda: setattr(module, name, value))

    def _replace(self, module: Any, name: str, value: Any) -> None:
        if name in module.__dict__:
            self._restore_later(module, name)
        else:
            self._undo.append(lambda: module.__dict__.pop(name, None))
        module.__dict__[name] = value

    # -- one forward, in order --------------------------------------------------------------------

    def _before_head(self, module: Any, args: Any, kwargs: Any) -> None:
        if isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise NotImplementedError(
                "logits_to_keep as a tensor of columns is not supported while visual tokens are "
                "removed; give a number of last columns"
            )
        self._head_arguments = kwargs

    def _before_host(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Reads the full inputs; after a shortened prompt, fits mask and positions to the cache."""
        given = self._host_call.named(args, kwargs)
        cache = self._host_call.cache(given)
        self.step = step = Step(cache=cache, arguments=given)
        name = "inputs_embeds" if given.get("input_ids") is None else "input_ids"
        batch, length = given[name].shape[:2]
        step.inputs = given[name]
        step.attention_mask = given.get("attention_mask")
        step.past = step.original_past = past_length(cache)
        self._find_images(given, batch, length)
        if self.handle.strict:
            self._refuse_lost_cache(given, batch, length)
        self._filled = None
        if step.past and (cut := CutCache.of(cache)) is not None:
            if step.placeholders is not None:
                raise NotImplementedError(
                    "new images after a prompt whose visual tokens were removed in the language "
                    "model are not supported; start with a new cache"
                )
            rows = rows_now(cache, batch)
            step.layers = CutStep(cut, step.attention_mask, step.past, length, rows)
            if not self._in_layers:  # filled under another handle
                self._install_layers()
        state = CacheState.of(cache) if step.past else None
        if state is not None:
            state = state.for_rows(rows_now(cache, batch)).cut(step.past)
            given = self._continue(given, state, length)
        elif step.placeholders is None and not step.past:
            self.handle.kept_positions = self._all_positions(given[name], step.attention_mask)
        return (), given

    def _all_positions(self, inputs: Tensor, mask: Any) -> list[Tensor]:
        real = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = ~edge_padding(mask.to(real.device))[0]
        return [row.nonzero()[:, 0] for row in real]

    def _find_images(self, given: Mapping[str, Any], batch: int, length: int) -> None:
        step = self.step
        outputs = given.get(ENCODER_OUTPUTS)
        outputs = outputs if isinstance(outputs, Mapping) else {"image": outputs}
        step.encoder_output = outputs.get("image")
        videos = given.get("pixel_values_videos") is not None or outputs.get("video") is not None
        if videos and self.handle.strict:
            raise NotImplementedError(
                "tokens of videos are not reduced; strict=False lets them pass as they are"
            )
        ids, token = given.get("input_ids"), self.adapter.image_token_id
        if step.encoder_output is None and given.get("pixel_values") is None:
            if ids is None and not step.past and length > 1 and self.handle.strict:
                raise NotImplementedError(
                    "inputs_embeds without images: visual tokens cannot be told from text, nothing "
                    "would be removed. Pass input_ids with pixel_values; strict=False lets it pass"
                )
            marks = 0 if ids is None or step.past else int((ids == token).sum())
            if marks and not videos and self.handle.strict:
                raise ValueError(
                    f"input_ids hold {marks} placeholders for image tokens, but no image came: "
                    f"expected pixel_values or {ENCODER_OUTPUTS}, got {', '.join(sorted(given))}"
                )
            return
        if ids is not None:
            step.placeholders = ids == token
        else:
            embeddings = given["inputs_embeds"]
            placeholder = self.adapter.model.get_input_embeddings()(
                torch.tensor(token, device=embeddings.device)
            )
            step.placeholders = (embeddings == placeholder).all(-1)
        if getattr(step.cache, "is_compileable", False):
            raise NotImplementedError(
                "a static cache has its length fixed for the whole prompt; use the default, dynamic"
            )
        mask, positions = step.attention_mask, given.get("position_ids")
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

    def _continue(self, given: dict[str, Any], state: CacheState, length: int) -> dict[str, Any]:
        step = self.step
        step.state, step.shift = state, state.shift
        step.original_past = state.original_past(step.past)
        positions = given.get("position_ids")
        if positions is None and step.placeholders is not None and self.adapter.positions_need_grid:
            raise NotImplementedError(
                "new images after a shortened prompt need explicit position_ids in this model"
            )
        step.attention_mask = state.attention_mask(step.attention_mask, step.past, length)
        return given | {
            "attention_mask": step.attention_mask,
            "position_ids": state.positions(positions, step.past, length),
        }

    def _before_language_model(self, module: Any, args: Any, kwargs: Any) -> Any:
        """The heart of it: the columns of dropped tokens go, everywhere alike."""
        step = self.step
        given = self._language_call.named(args, kwargs)
        self._check_language_model(given)
        if step.placeholders is None or step.done:
            return (), self._keep_windows(given)
        if isinstance(self.handle.method, LayerMethod):
            return (), self._enter_layers(self.handle.method, given)
        embeddings = given["inputs_embeds"]
        placeholders = step.placeholders.to(embeddings.device)
        layouts, attention = self._layouts(placeholders)
        with Stopwatch(embeddings.device) as stopwatch:
            features = embeddings[placeholders]
            texts = self._texts(embeddings, placeholders, layouts)
            images = reduce_images(
                self.handle.method, self.handle.budget, features, layouts, attention, texts
            )
            step.done = True
            now = self._now(placeholders)
            if bool(images.keep.all()):
                columns = None
            else:
                columns = self._columns(images, placeholders, now)
                given = self._shorten(given, columns, images, placeholders)
        step.columns = columns
        kept = ~edge_padding(now)[0] if columns is None else columns.keep
        self.handle._note(
            images,
            [row.nonzero()[:, 0] + step.original_past for row in kept],
            [stopwatch, *(self.encoded.stopwatches if self.encoded else ())],
        )
        return (), given

    def _refuse_lost_cache(self, given: Mapping[str, Any], batch: int, length: int) -> None:
        """Raises where a step would go on from nothing, for want of its cache or our notes on it.

        A mask says of how many columns the step is the end. Without one, a single token or
        positions beyond what the forward before has cached are taken for a step.
        """
        step, filled, call = self.step, self._filled, self._host_call
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        columns = mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else None
        known = CacheState.of(step.cache) or CutCache.of(step.cache)
        if step.past:
            if known is None and columns not in (None, step.past + length):
                raise RuntimeError(
                    f"attention_mask must have {step.past + length} columns, those of the cache "
                    f"and {length} more, got {columns}: this cache is not the one that was filled"
                )
            return
        goes_on = columns is not None and columns > length
        if not goes_on and step.cache is None and step.placeholders is None and filled is not None:
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

    def _check_language_model(self, given: Mapping[str, Any]) -> None:
        """What the host has been seen to be given is what it goes on with."""
        if self.step.inputs is None:  # called by itself, not by its host
            return
        call, self.step.language_cache = self._language_call, self._language_call.cache(given)
        past = past_length(self.step.language_cache)
        require(
            isinstance(given.get("inputs_embeds"), Tensor),
            f"{call.name} must be called with inputs_embeds, "
            f"got {type(given.get('inputs_embeds')).__name__}",
        )
        require(
            past == self.step.past,
            f"{call.name} must be called with the cache of {self._host_call.name}, which holds "
            f"{self.step.past} columns, got one of {past}",
        )

    def _enter_layers(self, method: LayerMethod, given: dict[str, Any]) -> dict[str, Any]:
        """The whole prompt goes in; tokens leave on their way through the layers."""
        step = self.step
        assert step.placeholders is not None  # `_before_language_model` has looked
        placeholders = step.placeholders.to(given["inputs_embeds"].device)
        layouts, _ = self._layouts(placeholders)
        now = self._now(placeholders)
        step.layers = LayerReduction(
            method,
            self.handle.budget,
            layouts,
            placeholders,
            now,
            self._prompt_ends(now, placeholders),
            step.past,
            len(self.adapter.decoder_layers),
        )
        step.embeddings = given["inputs_embeds"]
        return step.layers.take_deepstack(given)

    def _prompt_ends(self, now: Tensor, placeholders: Tensor) -> Tensor:
        inputs, last = self.step.inputs, self._last_prompt
        assert inputs is not None  # `_before_host` has set it
        if last is not None and last.goes_on_in(inputs):
            last.length += 1
            return last.ends
        labels = self._head_arguments.get("labels")
        ends = prompt_ends(
            now, placeholders, labels, self._head_arguments.get("logits_to_keep") or 0
        )
        self._last_prompt = Prompt(inputs, inputs.shape[1], ends)
        return ends

    def _before_layer(self, number: int, module: Any, args: Any, kwargs: Any) -> Any:
        layers = self.step.layers
        given = dict(kwargs)
        if layers is None and not self._checkpointed:
            return None
        hidden, *rest = args or (given.pop("hidden_states"),)
        if isinstance(layers, CutStep):
            return (hidden, *rest), layers.enter(number, module, hidden, given)
        # What a checkpoint runs again it runs on the very tensors that it was first given.
        cos = given["position_embeddings"][0]
        if layers is None:
            layers = self._checkpointed.get(cos)
            if layers is None:
                return None
            hidden, given = layers.enter_again(number, module, hidden, given)
            return (hidden, *rest), given
        if module.training and getattr(module, "gradient_checkpointing", False):
            self._checkpointed[cos] = layers
        hidden, given = layers.enter(number, module, hidden, given)
        return (hidden, *rest), given

    def _leave_layers(self, layers: LayerReduction, cache: Any) -> None:
        step = self.step
        if not layers.finished:  # another way was taken: `_after_host` will say so
            return
        step.done, step.columns = True, layers.columns
        layers.forget_arguments()
        assert step.embeddings is not None  # `_enter_layers` has set it
        kept = layers.real if layers.columns is None else layers.columns.keep
        self.handle._note(
            layers.images(step.embeddings[layers.placeholders]),
            [row.nonzero()[:, 0] + step.original_past for row in kept],
            layers.stopwatches,
            [None if columns is None else columns.keep for columns in layers.by_layer],
        )
        if layers.columns is not None and is_filled(cache):
            CutCache.attach(cache, layers)
            length = layers.real.shape[1]
            removed = [length - kept.index.shape[1] if kept else 0 for kept in layers.by_layer]
            self.handle._note_cache(cache, removed)

    def _layouts(self, placeholders: Tensor) -> tuple[list[ImageLayout], list[Tensor] | None]:
        """Of every image that the placeholders stand for, in their order."""
        encoded = self.encoded
        output = self.step.encoder_output
        if output is not None and (encoded is None or not encoded.is_of(output)):
            # Encoded by the caller, outside of our sight.
            lengths = self.adapter.lengths(image_features(output))
            if "attention" in self.handle.method.needs:
                raise ValueError(
                    f"{type(self.handle.method).__name__} needs the attention of the vision tower, "
                    "got images that were encoded before; pass pixel_values"
                )
            sizes = self.adapter.sizes(self.step.arguments, len(lengths))
            encoded = EncodedImages(sizes, lengths, None, lambda: None)
        if encoded is None:
            raise RuntimeError(
                f"{type(self.adapter.model).__name__} did not encode its images in "
                "get_image_features, the adapter does not fit it"
            )
        order = images_of_rows(placeholders.sum(1).tolist(), encoded.lengths)
        layouts = {size: self.adapter.layout(size) for size in set(encoded.sizes)}
        for number in order:
            layout = layouts[encoded.sizes[number]]
            if layout.num_tokens != encoded.lengths[number]:
                raise RuntimeError(
                    f"an image of size {encoded.sizes[number]} was expected to give "
                    f"{layout.num_tokens} tokens, the host made {encoded.lengths[number]}"
                )
        attention = encoded.attention
        return (
            [layouts[encoded.sizes[number]] for number in order],
            None if attention is None else [attention[number] for number in order],
        )

    def _texts(
        self, embeddings: Tensor, placeholders: Tensor, layouts: list[ImageLayout]
    ) -> list[Tensor] | None:
        """For each image the embeddings [T, D] of its prompt's other tokens, where they matter."""
        if "text" not in self.handle.method.needs:
            return None
        words = self._now(placeholders) & ~placeholders
        rows = placeholders.nonzero()[:, 0].tolist()
        texts, first = [], 0
        for layout in layouts:
            row = rows[first]
            texts.append(embeddings[row, words[row]])
            first += layout.num_tokens
        return texts

    def _now(self, placeholders: Tensor) -> Tensor:
        """[B, L] bool: the columns of this step that are no padding."""
        mask = self.step.attention_mask
        if mask is None:
            return torch.ones_like(placeholders)
        return mask[:, -placeholders.shape[1] :].bool().to(placeholders.device)

    def _columns(self, images: ReducedImages, placeholders: Tensor, now: Tensor) -> KeptColumns:
        padding, pad_left = edge_padding(now)
        keep = ~padding
        keep[placeholders] &= images.keep
        return KeptColumns.of(keep, pad_left=pad_left)

    def _shorten(
        self,
        given: dict[str, Any],
        columns: KeptColumns,
        images: ReducedImages,
        placeholders: Tensor,
    ) -> dict[str, Any]:
        step, past = self.step, self.step.past
        embeddings = given["inputs_embeds"]
        short = columns.take_embeddings(embeddings)
        made = torch.zeros_like(placeholders)
        rows, cols = placeholders.nonzero(as_tuple=True)
        places = images.places()
        made[rows[places], cols[places]] = True
        features = images.features(embeddings[placeholders])
        short = short.masked_scatter(columns.take(made, False)[:, :, None], features.to(short))
        given = given | {"inputs_embeds": short}

        now = self._now(placeholders)
        positions = given.get("position_ids")
        if positions is None:
            positions = torch.arange(now.shape[1], device=now.device)[None] + past
        positions = positions.expand(*positions.shape[:-2], len(now), -1)
        given["position_ids"] = self._positions(positions, columns, now)

        earlier = now.new_ones(len(now), past)
        if step.attention_mask is not None:
            earlier = step.attention_mask[:, :past].to(now)
        mask = torch.cat([earlier, columns.take(now, False)], dim=1)
        self._check_windows(given.get("attention_mask"), now.shape[1])
        given["attention_mask"] = self._mask(given.get("attention_mask"), mask, columns)
        before = torch.arange(past, device=now.device).expand(len(now), -1)
        if step.state is not None:
            before = step.state.all_columns(past, 0).to(now.device)
        step.state = CacheState(
            mask,
            torch.cat([before, columns.index + step.original_past], dim=1),
            step.original_past + now.shape[1],
            self._next_position,
            self._shift,
        )

        if given.get("visual_pos_masks") is not None:
            given["visual_pos_masks"] = columns.take(given["visual_pos_masks"], False)
        if given.get("deepstack_visual_embeds") is not None:
            given["deepstack_visual_embeds"] = [
                images.applied_to(layer) for layer in given["deepstack_visual_embeds"]
            ]
        return given

    def _positions(self, positions: Tensor, columns: KeptColumns, now: Tensor) -> Tensor:
        """[.., B, L] -> [.., B, L'], and what the tokens after it go on from."""
        axes = positions if positions.ndim == 3 else positions[None]
        now, keep = now.to(axes.device), columns.keep.to(axes.device)
        # Qwen-VL's four rows are the text's numbering and the three axes of mRoPE.
        split = len(axes) - 3 if len(axes) == 4 else 0
        rope = axes[split:]
        following = rope.masked_fill(~now, -1).amax(dim=(0, 2)) + 1
        self._next_position = following
        if self.handle.positions == "compact":
            rope = compact(rope, keep, now)
            axes = torch.cat([compact(axes[:split], keep, now), rope]) if split else rope
            self._next_position = rope.masked_fill(~(keep & now), -1).amax(dim=(0, 2)) + 1
        self._shift = following - self._next_position
        if self.step.shift is not None:
            self._shift = self._shift + self.step.shift.to(self._shift.device)
        taken = columns.take(axes)
        return taken if positions.ndim == 3 else taken[0]

    def _mask(self, given: Any, mask: Tensor, columns: KeptColumns) -> Any:
        """`given`: what the host made of the mask, [B, L], [B, H, L, L], or one per layer type."""
        if isinstance(given, dict):
            return {kind: self._mask_of_layers(one, mask, columns) for kind, one in given.items()}
        if isinstance(given, Tensor) and given.ndim == 4:
            return self._mask_of_layers(given, mask, columns)
        # Always a mask: without one, positions with gaps are taken for several packed sequences.
        return mask.to(given.dtype if isinstance(given, Tensor) else torch.int64)

    def _mask_of_layers(self, given: Any, mask: Tensor, columns: KeptColumns) -> Any:
        if given is None or (isinstance(given, Tensor) and given.ndim == 4):
            return columns.take_mask(given, self.step.past)
        if isinstance(given, Tensor) and given.ndim == 2:
            return mask.to(given)
        raise NotImplementedError(
            f"attention masks of type {type(given).__name__} cannot be shortened; "
            "use attn_implementation sdpa, eager or flash_attention_2"
        )

    @property
    def _window(self) -> int | None:
        return getattr(self.adapter.config.get_text_config(), "sliding_window", None)

    def _check_windows(self, masks: Any, length: int) -> None:
        """A sliding window counts columns of the whole sequence; not every host can be told so."""
        if self._window is None or self.step.original_past + length <= self._window:
            return
        mask = masks.get("sliding_attention") if isinstance(masks, dict) else None
        if self.step.past or not (isinstance(mask, Tensor) and mask.ndim == 4):
            raise NotImplementedError(
                f"the sequence of {self.step.original_past + length} tokens is longer than the "
                f"model's sliding window of {self._window}; its masks cannot be shortened exactly"
            )

    def _keep_windows(self, given: dict[str, Any]) -> dict[str, Any]:
        """After a shortened prompt a window still ends where it ended in the whole sequence."""
        state, window, masks = self.step.state, self._window, given.get("attention_mask")
        if state is None or window is None:
            return given
        if not isinstance(masks, dict):
            self._check_windows(masks, given["inputs_embeds"].shape[1])
            return given
        if "sliding_attention" not in masks:
            return given
        length = given["inputs_embeds"].shape[1]
        mask = masks["sliding_attention"]
        columns = state.all_columns(self.step.past, length)
        held = min(self.step.past, window - 1) + length if mask is None else mask.shape[-1]
        keys, queries = columns[:, None, -held:], columns[:, -length:, None]
        near = (queries - keys < window)[:, None]  # [B, 1, length, held]
        if mask is None:
            assert self.step.attention_mask is not None  # the state has set it
            real = self.step.attention_mask[:, None, None, -held:].bool()
            mask = near & (keys <= queries)[:, None] & real
        elif mask.dtype == torch.bool:
            mask = mask & near.to(mask.device)
        else:
            mask = mask.masked_fill(~near.to(mask.device), torch.finfo(mask.dtype).min)
        return given | {"attention_mask": masks | {"sliding_attention": mask}}

    def _after_language_model(self, module: Any, args: Any, output: Any) -> None:
        step = self.step
        # A cache is filled in place, also where the output does not hand it on.
        cache = cache_of(output)
        if not is_filled(cache):
            cache = step.language_cache
        if step.inputs is not None and is_filled(cache):
            self._filled = Filled(len(step.inputs), past_length(cache))
        if isinstance(step.layers, LayerReduction):
            self._leave_layers(step.layers, cache)
        elif step.columns is not None and step.state is not None and is_filled(cache):
            step.state.attach(cache)
            length, left = step.columns.keep.shape[1], step.columns.index.shape[1]
            self.handle._note_cache(cache, [length - left] * len(cache.layers))

    def _after_host(self, module: Any, args: Any, output: Any) -> None:
        step = self.step
        # Labels are cut after this; nothing else may outlive the forward, also a failed one.
        self.step = Step(columns=step.columns)
        self._head_arguments = {}
        if output is None:
            return
        if step.placeholders is not None and not step.done and self.handle.strict:
            raise RuntimeError(
                f"no visual token was removed: {type(module).__name__} did not reach its language "
                "model by the way the adapter knows"
            )

    def _loss(self, loss_function: Any) -> Any:
        """The host's own loss, on the labels of the columns that remain."""

        def loss(*args: Any, labels: Tensor, **kwargs: Any) -> Any:
            columns = self.step.columns
            if columns is not None:
                labels = columns.take(labels, fill=-100)
                if (shifted := kwargs.get("shift_labels")) is not None:
                    # What follows a column may have left: shift back, take, and shift again.
                    whole = functional.pad(shifted[:, :-1], (1, 0), value=-100)
                    kept = columns.take(whole, fill=-100)
                    kwargs["shift_labels"] = functional.pad(kept[:, 1:], (0, 1), value=-100)
            return loss_function(*args, labels=labels, **kwargs)

        return loss


def images_of_rows(tokens_per_row: list[int], lengths: list[int]) -> list[int]:
    """Which encoded image each run of placeholders stands for.

    Images come in the order of their placeholders, row by row; generation with beams repeats rows,
    not images: a row's images then stand again in each of its copies.

    Raises:
        ValueError: placeholders and image tokens do not add up.
    """
    total, encoded = sum(tokens_per_row), sum(lengths)
    copies = total // encoded if encoded else 0
    if not encoded or total % encoded or len(tokens_per_row) % copies:
        raise ValueError(
            f"the prompt has {total} placeholders for image tokens, the images have {encoded}"
        )
    order: list[int] = []
    first = 0
    for row in range(0, len(tokens_per_row), copies):
        last, missing = first, tokens_per_row[row]
        while missing > 0 and last < len(lengths):
            missing -= lengths[last]
            last += 1
        if missing:
            raise ValueError(f"the placeholders of row {row} end within an image")
        order += list(range(first, last)) * copies
        first = last
    return order
