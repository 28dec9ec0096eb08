"""The entry point in the group `vllm.general_plugins`; vLLM calls it in each of its processes."""

from __future__ import annotations

from geollava.model.registration import register as register_with_transformers

# Our own saved form, and the published one.
ARCHITECTURES = ("GeoLlavaForConditionalGeneration", "LlavaQwenForCausalLM")


def register() -> None:
    from vllm import ModelRegistry

    register_with_transformers()  # vLLM reads configuration and tokenizer by the Auto classes
    for name in ARCHITECTURES:
        ModelRegistry.register_model(name, "geollava.serving.model:ServedGeoLlava")
