"""The entry point in the group `vllm.general_plugins`; vLLM calls it in each of its processes.

At that time nobody knows which model will be served. So classes of our own stand beside vLLM's, by
names of their own; a check of the whole configuration, which vLLM makes for some architectures
anyway, puts ours in the place of vLLM's where the server was given our options, and only there.
"""

from __future__ import annotations

from typing import Any

from tokenprune.log import logger
from tokenprune.serving.vllm.hosts import HOSTS, PREFIX
from tokenprune.serving.vllm.options import KEY, ServingOptions


def register() -> None:
    try:
        from vllm import ModelRegistry
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
    except ImportError as error:
        logger.warning("this vLLM is not known to tokenprune, which does nothing in it: %s", error)
        return
    for architecture in ModelRegistry.get_supported_archs():
        known = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
        MODELS_CONFIG_MAP[architecture] = with_check(known)
    for architecture in HOSTS:
        name = PREFIX + architecture
        ModelRegistry.register_model(name, f"tokenprune.serving.vllm.model:{name}")


def with_check(known: Any) -> Any:
    """The class that checks a configuration for vLLM, and then for us."""

    class Checked(known):
        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            known.verify_and_update_config(vllm_config)
            prepare(vllm_config)

    return Checked


def prepare(vllm_config: Any) -> None:
    """Chooses our class where the server was given options.

    Raises:
        ValueError: options that cannot be served; the message says why.
    """
    model_config = vllm_config.model_config
    multimodal = model_config.multimodal_config
    if multimodal is not None and KEY in (multimodal.mm_processor_kwargs or {}):
        raise ValueError(
            f"{KEY} must be in --hf-overrides for a server; mm_processor_kwargs are a request's"
        )
    options = ServingOptions.of(model_config.hf_config)
    if options is None:
        return
    from tokenprune.serving.vllm.refusals import check

    check(vllm_config, options)
    model_config.hf_config.architectures = [PREFIX + model_config.architecture]
