"""What cannot be served exactly, found when a server starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.apply import check_method
from tokenprune.method import Method
from tokenprune.serving.vllm.hosts import HOSTS, REFUSED, adapter_for
from tokenprune.serving.vllm.options import ServingOptions
from tokenprune.serving.vllm.tower import OFFERS

TESTED = (0, 32), (0, 33)  # from the first, below the second: tests/serving/vllm passed


def check(vllm_config: Any, options: ServingOptions) -> None:
    """
    Raises:
        ValueError: the reason why these options cannot be served.
    """
    check_version()
    architecture = vllm_config.model_config.architecture
    if reason := REFUSED.get(architecture):
        raise ValueError(f"tokenprune cannot serve {architecture}: {reason}")
    if architecture not in HOSTS:
        raise ValueError(
            f"tokenprune must be given one of {', '.join(HOSTS)} to serve, got {architecture}"
        )
    method = options.build()
    try:
        adapter = adapter_for(vllm_config.model_config.hf_config)
        check_served(method, adapter)
    except NotImplementedError as error:
        raise ValueError(f"tokenprune cannot serve this: {error}") from error
    for reason in reasons(vllm_config, method, adapter):
        raise ValueError(f"tokenprune cannot serve this: {reason}")


def check_version() -> None:
    import vllm

    numbers = tuple(map(int, re.findall(r"\d+", vllm.__version__)[:2]))
    low, high = TESTED
    if not low <= numbers < high:
        raise ValueError(
            f"vLLM must be a release from {low[0]}.{low[1]} and below {high[0]}.{high[1]}, which "
            f"tokenprune was tested with, got {vllm.__version__}"
        )


def check_served(method: Method, adapter: Adapter) -> None:
    """
    Raises:
        NotImplementedError: a method that works in transformers alone, or not in this host at all.
    """
    name = type(method).__name__
    if method.before_projector:
        raise NotImplementedError(
            f"{name} works before the projector, vLLM hands over what comes out of it"
        )
    if missing := [need for need in method.needs if need not in OFFERS]:
        raise NotImplementedError(
            f"{name} needs {', '.join(missing)}; vLLM encodes an image apart from its prompt and "
            f"keeps the result for others, it hands over {', '.join(sorted(OFFERS))}"
        )
    if method.by_crop:
        raise NotImplementedError(
            f"{name} reduces the crops of an image together, which are apart in vLLM"
        )
    if method.over_time:
        raise NotImplementedError(f"{name} compares the frames of videos, which stay whole in vLLM")
    check_method(method, adapter)
    method.known_count(16, 4)


def reasons(vllm_config: Any, method: Method, adapter: Adapter) -> Iterator[str]:
    """Why vLLM's own options stand against it."""
    parallel, compilation = vllm_config.parallel_config, vllm_config.compilation_config
    model_config = vllm_config.model_config
    if model_config.runner_type != "generate":
        yield f"the runner must be 'generate', got {model_config.runner_type!r}"
    if parallel.tensor_parallel_size > 1 and method.needs:
        yield (
            f"{type(method).__name__} reads {', '.join(method.needs)} of the vision tower, whose "
            "heads tensor parallelism shares out among ranks, "
            f"got tensor_parallel_size={parallel.tensor_parallel_size}"
        )
    if compilation.cudagraph_mm_encoder:
        yield "an encoder CUDA graph (cudagraph_mm_encoder) goes past what reduces images"
    if compilation.compile_mm_encoder and method.needs:
        yield (
            f"{type(method).__name__} reads {', '.join(method.needs)} of the vision tower, which a "
            "compiled one (compile_mm_encoder) does not hand over"
        )
    if vllm_config.speculative_config is not None:
        yield "speculative decoding was not tested: its draft model takes the images' tokens, too"
    lora = vllm_config.lora_config
    if lora is not None and lora.enable_tower_connector_lora:
        yield "LoRA in the vision tower counts the tokens that come out of it"
    if adapter.positions_need_grid:
        yield from reasons_of_positions(vllm_config)


def reasons_of_positions(vllm_config: Any) -> Iterator[str]:
    """Those where positions have several axes, which `forward` corrects in each step."""
    parallel, compilation = vllm_config.parallel_config, vllm_config.compilation_config
    if parallel.pipeline_parallel_size > 1:
        yield "with mRoPE positions, later stages of a pipeline do not see which tokens were kept"
    if parallel.use_ubatching:
        yield "with mRoPE positions, a step must not be split into micro-batches (enable_dbo)"
    mode = compilation.cudagraph_mode
    if mode is not None and mode.has_full_cudagraphs():
        yield (
            "with mRoPE positions, a full CUDA graph goes past what corrects them; give "
            '--compilation-config \'{"cudagraph_mode": "PIECEWISE"}\', '
            f"got cudagraph_mode={mode.name}"
        )
    if vllm_config.use_v2_model_runner:
        yield (
            "with mRoPE positions, vLLM's model runner V2 was not tested; set "
            "VLLM_USE_V2_MODEL_RUNNER=0"
        )
    if vllm_config.model_config.multimodal_config.is_multimodal_pruning_enabled():
        yield "vLLM's own pruning of videos (video_pruning_rate) changes what images hand over"
