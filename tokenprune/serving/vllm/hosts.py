"""Which of vLLM's model classes can be served with fewer visual tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.registry import find_adapter

PREFIX = "Tokenprune"  # before the name of an architecture: its class with our mixin


@dataclass(frozen=True)
class ServedHost:
    """A model class of vLLM's.

    Attributes:
        module: the file in `vllm.model_executor.models` that holds it.
        tower: the path of its vision tower.
        packed: the tower runs on the patches of all images in one row, [patches, 1, D].
        padded: a processor fills the crops of several images up to one number.
        name: the class, where it is not named like the architecture.
    """

    module: str
    tower: str = "vision_tower"
    packed: bool = False
    padded: bool = False
    name: str | None = None


# By architecture, as the `config.json` of a checkpoint names it.
HOSTS = {
    "LlavaForConditionalGeneration": ServedHost("llava"),
    "LlavaNextForConditionalGeneration": ServedHost("llava_next", padded=True),
    "LlavaOnevisionForConditionalGeneration": ServedHost("llava_onevision", padded=True),
    "Qwen2VLForConditionalGeneration": ServedHost("qwen2_vl", "visual", packed=True),
    "Qwen2_5_VLForConditionalGeneration": ServedHost("qwen2_5_vl", "visual", packed=True),
    "Qwen3VLForConditionalGeneration": ServedHost("qwen3_vl", "visual", packed=True),
    "Qwen3VLMoeForConditionalGeneration": ServedHost("qwen3_vl_moe", "visual", packed=True),
    "InternVLForConditionalGeneration": ServedHost(
        "interns1", name="InternS1ForConditionalGeneration"
    ),
    "Idefics3ForConditionalGeneration": ServedHost("idefics3", "model.vision_model"),
    "SmolVLMForConditionalGeneration": ServedHost("smolvlm", "model.vision_model"),
}

# What `tokenprune.apply` serves and vLLM has, but where the two differ without any reduction.
REFUSED = {
    "Gemma3ForConditionalGeneration": (
        "the tokens of an image attend in both directions, which vLLM does not do on a CPU"
    ),
    "PaliGemmaForConditionalGeneration": (
        "image and question attend in both directions, in vLLM at most the image does"
    ),
}


def architecture_of(hf_config: Any) -> str:
    """The architecture of a checkpoint, also where its class is ours by now."""
    name: str = hf_config.architectures[0]
    return name.removeprefix(PREFIX)


def adapter_for(hf_config: Any) -> Adapter:
    """The adapter that `tokenprune.apply` uses, on a transformers model without weights.

    Raises:
        NotImplementedError: transformers does not have the model, or no adapter knows it.
    """
    import transformers

    architecture = architecture_of(hf_config)
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise NotImplementedError(f"transformers has no {architecture}")
    config = copy.deepcopy(hf_config)
    config.architectures = [architecture]
    with torch.device("meta"):
        return find_adapter(model_class(config))


def parts_of(adapter: Adapter, size: Any, num_tokens: int) -> list[ImageLayout]:
    """What a budget counts for in an image of so many tokens: the image, or each of its crops.

    Args:
        size: as the adapter's `layout` takes it.

    Raises:
        RuntimeError: vLLM and transformers count the image's tokens differently.
    """
    layout = adapter.layout(size)
    number = num_tokens // layout.num_tokens if adapter.unit == "crop" else 1
    if number * layout.num_tokens != num_tokens:
        raise RuntimeError(
            f"vLLM has {num_tokens} tokens for an image of size {size}, transformers has "
            f"{layout.num_tokens} for each {adapter.unit}"
        )
    return [layout] * number
