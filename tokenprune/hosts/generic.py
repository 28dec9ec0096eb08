"""Generic: any host that keeps transformers' own conventions, without a file of its own.

The conventions: `get_image_features` encodes the images, `get_placeholder_mask` finds their
placeholders, the features are put there, and a language model of self-attention with rotary
positions is called with the embeddings. `why_refused` looks for each of them in the model itself,
and for what would be wrong without a word; `mechanisms.py` has the reasons.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import HOST_ARGUMENTS, LANGUAGE_MODEL_ARGUMENTS, TOKENWISE, Call
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.mechanisms import REASONS
from tokenprune.hosts.recurrent import KINDS, MASKS, mixers
from tokenprune.method import OF_TOWER, Method

LANGUAGE_MODELS = ("language_model", "text_model")
IMAGE_TOKENS = ("image_token_id", "image_token_index", "im_patch_id", "image_patch_id")
# Kinds of attention whose masks are known. An indexer ranks the columns that its mask leaves open,
# and ranks them the same when the others are taken out.
ATTENTION = {"full_attention", "sliding_attention", "indexed_attention"}
POSITIONS = ("pos", "rotary", "relative", "alibi")  # in the names of modules that give some


class Generic(Adapter):
    """Models that keep the conventions of transformers.

    A budget counts for what `get_image_features` gives as one entry: an image in most, a crop or
    tile in others. Where its tokens lie in the image is not known, nor the tower.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    conversation_state: ClassVar[tuple[str, ...]] = ("rope_deltas",)
    unit: ClassVar[str] = "crop"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.positions_need_grid = hasattr(model, "get_rope_index")  # type: ignore[misc]

    @classmethod
    def host_of(cls, model: nn.Module) -> nn.Module:
        base: nn.Module = getattr(model, "base_model", model)
        return base if hasattr(base, "get_image_features") else model

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"features", "text"})

    def why_not(self, method: Method) -> str | None:
        if of_tower := [name for name in method.needs if name in OF_TOWER]:
            return (
                f"needs {', '.join(of_tower)} of the tower, whose order is not known in a host "
                "without an adapter of its own"
            )
        if method.in_layers:
            return "works between layers, which only hosts with an adapter of their own allow"
        if method.uses_grid:
            return (
                "uses the grid of tokens, which is not known in a host without an adapter of "
                "its own"
            )
        return None

    def why_not_compact(self) -> str | None:
        return (
            "is proven only for hosts with an adapter of their own; 'original' leaves every "
            "token its position"
        )

    def check(self) -> None:
        if (reason := why_refused(self.model)) is not None:
            raise NotImplementedError(f"{type(self.model).__name__} is refused: {reason}")

    @property
    def language_model(self) -> nn.Module:
        found = language_model_of(self.model)
        assert found is not None  # `why_refused` has looked
        return found

    @property
    def image_token_id(self) -> int:
        found = image_token_of(self.config)
        assert found is not None
        return found

    def per_image(self, features: Any, arguments: Mapping[str, Any]) -> Any:
        """Raises where entries cannot be one image's, or one crop's."""
        if isinstance(features, Tensor) and features.ndim < 3:
            raise NotImplementedError(REASONS["flat features"])
        pixels = arguments.get("pixel_values")
        rows = pixels.shape[:2] if isinstance(pixels, Tensor) and pixels.ndim == 5 else (0, 0)
        if rows[1] > 1 and len(features) == rows[0]:
            raise NotImplementedError(REASONS["features per row"])
        return features

    def lengths(self, features: Any) -> list[int]:
        return [int(entry.shape[:-1].numel()) for entry in features]

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        return self.lengths(features)

    def layout(self, size: Any) -> ImageLayout:
        """`size`: the number of tokens; which of them lie side by side is not known."""
        if not isinstance(size, int):
            raise NotImplementedError(
                "how many tokens an image has is known only when it is encoded, in a host without "
                "an adapter of its own; give the number of its placeholders"
            )
        return ImageLayout.one_grid(1, size)


def language_model_of(host: nn.Module) -> nn.Module | None:
    """The module with the decoder layers, or None."""
    for name in LANGUAGE_MODELS:
        found = getattr(host, name, None)
        if isinstance(found, nn.Module) and not hasattr(found, "layers"):
            found = getattr(found, "model", None)
        if isinstance(found, nn.Module) and isinstance(
            getattr(found, "layers", None), nn.ModuleList
        ):
            return found
    return None


def image_token_of(config: Any) -> int | None:
    named = (getattr(config, name, None) for name in IMAGE_TOKENS)
    return next((token for token in named if isinstance(token, int)), None)


def why_refused(host: nn.Module) -> str | None:
    """Why the generic adapter would be wrong in a model, or None where it keeps the conventions."""
    config: Any = getattr(host, "config", None)
    if config is None or not callable(getattr(host, "get_image_features", None)):
        return REASONS["no features"]
    if getattr(config, "is_encoder_decoder", False):
        return REASONS["encoder-decoder"]
    if not callable(getattr(host, "get_placeholder_mask", None)):
        return REASONS["no placeholders"]
    if not takes(host.forward, *HOST_ARGUMENTS):
        return REASONS["no placeholders"]
    if image_token_of(config) is None:
        return REASONS["no image token"]
    language_model = language_model_of(host)
    if language_model is None or not takes(language_model.forward, *LANGUAGE_MODEL_ARGUMENTS):
        return REASONS["no language model"]
    return why_layers_are_refused(language_model)


def why_layers_are_refused(language_model: Any) -> str | None:
    """Attention that sees something else than the columns before, or layers that are none."""
    config = language_model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    chunk = getattr(config, "attention_chunk_size", None)
    if "chunked_attention" in (kinds or ()) or (kinds is None and chunk is not None):
        return REASONS["chunked attention"]
    names = [name.rsplit(".", 1)[-1].lower() for name, _ in language_model.named_modules()]
    if any(mark in name for name in names for mark in ("cross_att", "crossatt", "encoder_att")):
        return REASONS["cross attention"]
    if any(name.startswith("index_") and "pool" in name for name in config.to_dict()):
        return REASONS["blocks of columns"]
    if unknown := sorted(set(kinds or ()) - ATTENTION - KINDS - TOKENWISE):
        return f"{REASONS['unknown layers']} ({', '.join(unknown)})"
    recurrent = mixers(language_model)
    if not all(set(MASKS) & set(Call.parameters(mixer.forward)) for mixer in recurrent):
        return REASONS["recurrent"]
    for number, layer in enumerate(language_model.layers):
        kind = None if kinds is None else kinds[number]
        goes_on = any(module in recurrent for module in layer.modules())
        named = any("att" in name for name, _ in layer.named_children())
        if goes_on != (kind in KINDS) or not (goes_on or named or kind in ATTENTION | TOKENWISE):
            return REASONS["recurrent"]
    rotary = any("rotary" in name for name, _ in language_model.named_children())
    # Recurrent layers tell the order; attention beside them may do without positions altogether.
    without = bool(recurrent) and not any(mark in name for name in names for mark in POSITIONS)
    return None if rotary or without else REASONS["positions"]


def takes(function: Callable[..., Any], *names: str) -> bool:
    return set(names) <= set(inspect.signature(function).parameters)
