"""All that two or more hosts assume of transformers' names and call order, checked at entry.

Releases rename arguments. A name that is not found must never read as "nothing was given": a cache
that goes unseen turns every decoding step into a new prompt. So a handle checks, before it hooks
anything, that each function takes what the hooks rely on, and each call that no cache comes under a
name unknown here. What one family alone assumes stands in its own file, see `Adapter.check`.

From first to last, one forward of a host is assumed to
1. pass the processor's inputs to the model without its head, all of `HOST_ARGUMENTS` by name;
2. encode images in `get_image_features`, whose output carries `pooler_output`;
3. put features at the placeholders and call the language model with `inputs_embeds`;
4. call the decoder layers in turn, hidden states first, and the rest by name.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

CACHE_NAMES = ("cache", "past_key_values")  # from 5.24 on, and before
HOST_ARGUMENTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "pixel_values")
ENCODER_OUTPUTS = "mm_encoder_outputs"  # images encoded before, from 5.18 on
LANGUAGE_MODEL_ARGUMENTS = ("inputs_embeds", "attention_mask", "position_ids")
LAYER_ARGUMENTS = ("hidden_states", "attention_mask", "position_ids", "position_embeddings")
LAYER_PARTS = ("input_layernorm", "self_attn")
TOKENWISE = {"mlp", "moe"}  # kinds of layers that look at one token at a time, and take no mask


class UnknownTransformersError(NotImplementedError):
    """The installed transformers is not as assumed; the message says the version and what."""


def transformers_version() -> str:
    import transformers

    return str(transformers.__version__)


def require(holds: bool, assumption: str) -> None:
    """Raises UnknownTransformersError, which names the version and the assumption, unless it holds.

    `assumption` is a sentence: "X must be so, got Y".
    """
    if not holds:
        raise UnknownTransformersError(
            f"transformers {transformers_version()} is not as tokenprune assumes: {assumption}"
        )


def require_parameters(function: Callable[..., Any], *names: str) -> inspect.Signature:
    """The signature of `function`, which must take arguments of these names."""
    signature = inspect.signature(function)
    missing = [name for name in names if name not in signature.parameters]
    require(
        not missing,
        f"{name_of(function)} must take {', '.join(missing)}, "
        f"got {', '.join(signature.parameters)}",
    )
    return signature


def imported(module: str, name: str) -> Any:
    """What transformers has under this name."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        require(False, f"{module} must have {name}")


def require_attributes(owner: Any, *names: str) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    require(not missing, f"{type(owner).__name__} must have {', '.join(missing)}")


def name_of(function: Callable[..., Any]) -> str:
    """As in "LlavaModel.forward", also where something is wrapped around it."""
    function = inspect.unwrap(function)
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return f"{type(owner).__name__}.{name.rsplit('.', 1)[-1]}" if owner is not None else name


@dataclass(frozen=True)
class Call:
    """How a function of the host is called.

    Attributes:
        name: for messages, "LlavaModel.forward".
        signature: of the function.
        cache_name: the argument that carries the cache.
    """

    name: str
    signature: inspect.Signature
    cache_name: str

    @staticmethod
    def of(function: Callable[..., Any], *names: str) -> Call:
        """Raises UnknownTransformersError unless it takes arguments of these names, and a cache."""
        signature = require_parameters(function, *names)
        known = [name for name in CACHE_NAMES if name in signature.parameters]
        require(
            bool(known),
            f"{name_of(function)} must take its cache as {' or '.join(CACHE_NAMES)}, "
            f"got {', '.join(signature.parameters)}",
        )
        return Call(name_of(function), signature, known[0])

    @staticmethod
    def parameters(function: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(function).parameters)

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The call's arguments by name; its cache is under `cache_name`, whatever name it came by.

        Raises:
            UnknownTransformersError: a cache under a name that is not known.
        """
        given = dict(zip(self.signature.parameters, args, strict=False)) | dict(kwargs)
        for name in CACHE_NAMES:
            if name != self.cache_name and name in given:
                former = given.pop(name)
                given.setdefault(self.cache_name, former)
        refuse_unknown_cache(given, f"{self.name} is called")
        return given

    def cache(self, given: Mapping[str, Any]) -> Any:
        return given.get(self.cache_name)


def cache_of(output: Any) -> Any:
    """The cache that a forward or `generate` returned, or None.

    Raises:
        UnknownTransformersError: it is there under a name that is not known.
    """
    if not is_dataclass(output):
        return None
    # Fields, not attributes: newer releases warn at an attribute of the former name.
    returned = {field.name: getattr(output, field.name) for field in fields(output)}
    refuse_unknown_cache(returned, f"{type(output).__name__} comes")
    return next((returned[name] for name in CACHE_NAMES if name in returned), None)


def refuse_unknown_cache(values: Mapping[str, Any], what: str) -> None:
    from transformers.cache_utils import Cache

    for name, value in values.items():
        require(
            name in CACHE_NAMES or not isinstance(value, Cache),
            f"{what} with a cache as {name}, it must be {' or '.join(CACHE_NAMES)}",
        )


def is_filled(cache: Any | None) -> bool:
    return cache is not None and len(cache.layers) > 0


def past_length(cache: Any | None) -> int:
    """Columns that the cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def image_features(output: Any) -> Any:
    """What `get_image_features` gave: per image, a list, tuple or tensor of [tokens, D].

    A host outside of transformers may give a tensor by itself, see `Adapter.per_image`.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and not hasattr(output, "pooler_output"):
        features = output[1] if len(output) > 1 else None
    else:
        features = getattr(output, "pooler_output", None)
    require(
        isinstance(features, (Tensor, list, tuple)),
        f"get_image_features must give pooler_output, got {type(output).__name__}",
    )
    return features


@functools.cache
def mask_preparation() -> tuple[Callable[..., Any], Call]:
    prepare = imported("transformers.masking_utils", "create_masks_for_generate")
    return prepare, Call.of(prepare, "config", "inputs_embeds", "attention_mask")


def prepared_masks(config: Any, embeddings: Tensor, mask: Tensor | None, cache: Any) -> Any:
    """The masks that a language model would make for itself, one or one for each layer type.

    transformers makes them ahead, and hands them to the same models, where a cache is static.

    Args:
        config: of the language model.
        embeddings: [B, L, D].
        mask: [B, columns] or None.
        cache: says how many columns there are, or None.
    """
    prepare, call = mask_preparation()
    kinds = getattr(config, "layer_types", None) or []
    if TOKENWISE & set(kinds):  # for which transformers has no mask, and then makes none at all
        config = copy.copy(config)
        config.layer_types = [kind for kind in kinds if kind not in TOKENWISE]
    return prepare(
        config=config,
        inputs_embeds=embeddings,
        attention_mask=mask,
        **{call.cache_name: cache, "position_ids": None},
    )


def check_host(host: nn.Module) -> Call:
    """How the model without its head is called; raises unless it is a host as described above."""
    call = Call.of(host.forward, *HOST_ARGUMENTS)
    encode = getattr(host, "get_image_features", None)
    require(callable(encode), f"{type(host).__name__} must encode images in get_image_features")
    require_parameters(encode, "pixel_values")  # type: ignore[arg-type]
    require_attributes(host, "get_input_embeddings")
    return call


def check_head(model: nn.Module) -> None:
    """Raises unless the loss of a model with its head can be put on the columns that remain."""
    require(
        hasattr(type(model), "loss_function") and callable(getattr(model, "loss_function", None)),
        f"{type(model).__name__} must compute its loss in loss_function, from labels",
    )


def check_language_model(language_model: nn.Module) -> Call:
    """How the language model is called."""
    return Call.of(language_model.forward, *LANGUAGE_MODEL_ARGUMENTS)


def check_layer(layer: nn.Module) -> None:
    """Raises unless a decoder layer can be cut before, and its attention read ahead of its run."""
    require_attributes(layer, *LAYER_PARTS)
    Call.of(layer.forward, *LAYER_ARGUMENTS)
    attention: Any = layer.self_attn
    Call.of(attention.forward, "hidden_states", "attention_mask", "position_embeddings")
    require_attributes(attention, "config")


def attention_functions() -> Any:
    """The table in which attention layers look their function up, by the name in their config."""
    functions = imported("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS")
    require_attributes(functions, "get_interface")
    return functions


def attention_in(layer: nn.Module) -> nn.Module:
    """A decoder layer's self-attention, whatever the layer calls it."""
    parts = dict(layer.named_children())
    found = next((parts[name] for name in parts if "att" in name or name == "mixer"), None)
    require(
        found is not None and hasattr(found, "config"),
        f"{type(layer).__name__} must have self-attention with its configuration",
    )
    assert found is not None  # `require` has looked
    return found


def attention_implementation(layer: Any) -> str:
    """The name under which an attention layer looks its function up."""
    name = getattr(layer.config, "_attn_implementation", None)
    require(
        isinstance(name, str) and hasattr(layer.config, "_attn_implementation_internal"),
        f"{type(layer).__name__}.config must name its attention in _attn_implementation",
    )
    return str(name)
