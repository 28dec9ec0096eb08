"""What cannot be served is refused when the server starts, by its name."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest

from .engine import BASE, applied, differences, given, prompts, served
from .forks import in_fork


def configured(folder, **options):
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=str(folder), **{**BASE, **options}).create_engine_config()


def refusal(folder, **options):
    """The message of the ValueError."""

    def attempt():
        try:
            configured(folder, **options)
        except ValueError as error:
            return str(error)
        return None

    return in_fork(attempt)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ({"method": "divprone", "keep_ratio": 0.25}, "did you mean 'divprune'"),
        ({"keep_ratio": 0.25}, "must name a method"),
        ({"method": "divprune"}, "exactly one of num_keep and keep_ratio"),
        ({"method": "divprune", "keep_ratio": 0}, "keep_ratio must be in (0, 1], got 0"),
        ({"method": "divprune", "keep_ratio": 2}, "keep_ratio must be in (0, 1], got 2"),
        ({"method": "divprune", "keep_ratio": "a"}, "keep_ratio must be a number, got str"),
        ({"method": "divprune", "num_keep": 0}, "num_keep must be"),
        ({"method": "divprune", "pruning_ratio": 0.75}, "write keep_ratio=0.25"),
        ({"method": "divprune", "keep_ratio": 0.5, "options": {"a": 1}}, "divprune takes the opt"),
        ({"method": "divprune", "keep_ratio": 0.5, "options": 3}, "options must be an object"),
        ({"method": "fastv", "keep_ratio": 0.5}, "FastV needs layers; vLLM encodes an image apart"),
        ({"method": "sparsevlm", "keep_ratio": 0.5}, "SparseVLM needs text"),
        ({"method": "evs", "keep_ratio": 0.5}, "EVS compares the frames of videos"),
        ({"method": "globalcom2", "keep_ratio": 0.5}, "GlobalCom2 needs cls_logits"),
        (
            {"method": "prumerge", "keep_ratio": 0.5, "options": {"adaptive": True}},
            "how many tokens PruMerge keeps depends on the image",
        ),
        (
            {"method": "hiprune", "keep_ratio": 0.5},
            "HiPrune needs received; vLLM encodes an image apart",
        ),
    ],
)
def test_options(checkpoint, ours, expected):
    assert expected in refusal(checkpoint("qwen2_5_vl"), hf_overrides={"tokenprune": ours})


def test_no_object(checkpoint):
    message = refusal(checkpoint("qwen2_5_vl"), hf_overrides={"tokenprune": "divprune"})
    assert "tokenprune must be an object, got 'divprune'" in message


@pytest.mark.parametrize("method", ["visionzip", "prumerge"])
def test_official_forms_of_llava(checkpoint, method):
    ours = given(method, options={"official": True}, keep_ratio=0.5)
    assert "works before the projector" in refusal(checkpoint("llava"), **ours)


def test_gemma3_whose_images_attend_in_both_directions(checkpoint):
    folder = checkpoint("gemma3")
    message = refusal(folder, **given("divprune", keep_ratio=0.25))
    assert "cannot serve Gemma3ForConditionalGeneration: the tokens of an image attend" in message
    # The reason is true: vLLM itself answers differently about an image, and equally about text.
    asked = prompts("gemma3", ["landscape", "none"])
    found = differences(in_fork(served, folder, asked), in_fork(applied, folder, asked))
    assert found
    assert {text.split(":")[0] for text in found} == {"0"}


def test_options_of_a_request_given_to_the_server(checkpoint):
    options = {"mm_processor_kwargs": {"tokenprune": {"keep_ratio": 0.5}}}
    assert "must be in --hf-overrides" in refusal(checkpoint("qwen2_5_vl"), **options)


def test_a_host_that_is_not_known(checkpoint, tmp_path):
    import transformers as hf

    from .checkpoints import TEXT, TOKENIZER

    hf.LlamaConfig(**TEXT, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    message = refusal(tmp_path, **given("divprune", keep_ratio=0.25))
    assert "Qwen2_5_VLForConditionalGeneration" in message
    assert "got LlamaForCausalLM" in message


def test_a_release_that_was_not_tested(checkpoint, monkeypatch):
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.33.1")
    message = refusal(checkpoint("llava"), **given("divprune", keep_ratio=0.25))
    assert "vLLM must be a release from 0.32 and below 0.33" in message


def test_tensor_parallelism(checkpoint):
    two = {"tensor_parallel_size": 2}
    message = refusal(checkpoint("llava"), **given("fastervlm", keep_ratio=0.25), **two)
    assert "FasterVLM reads attention of the vision tower, whose heads tensor par" in message


FULL = SimpleNamespace(has_full_cudagraphs=lambda: True, name="FULL_AND_PIECEWISE")


@pytest.mark.parametrize(
    ("name", "changed", "expected"),
    [
        ("qwen2_5_vl", {"parallel_config.pipeline_parallel_size": 2}, "later stages"),
        ("llava", {"parallel_config.pipeline_parallel_size": 2}, None),
        ("qwen2_5_vl", {"parallel_config.enable_dbo": True}, "micro-batches"),
        ("qwen2_5_vl", {"compilation_config.cudagraph_mode": FULL}, "PIECEWISE"),
        ("llava", {"compilation_config.cudagraph_mode": FULL}, None),
        ("qwen2_5_vl", {"use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
        ("llava", {"compilation_config.cudagraph_mm_encoder": True}, "an encoder CUDA graph"),
        ("llava", {"compilation_config.compile_mm_encoder": True}, "FasterVLM reads attention"),
        ("llava", {"speculative_config": object()}, "speculative decoding"),
        (
            "llava",
            {"lora_config": SimpleNamespace(enable_tower_connector_lora=True)},
            "LoRA in the vision tower",
        ),
        ("llava", {"model_config.runner_type": "pooling"}, "the runner must be 'generate'"),
        (
            "qwen2_5_vl",
            {"model_config.multimodal_config.video_pruning_rate": 0.5},
            "vLLM's own pruning of videos",
        ),
    ],
)
def test_options_of_vllm(checkpoint, name, changed, expected):
    """Some need a GPU to be in force: they are set in a configuration that vLLM has made."""

    def found():
        from tokenprune.serving.vllm.options import ServingOptions
        from tokenprune.serving.vllm.refusals import adapter_for, reasons

        config = configured(checkpoint(name), **given("fastervlm", keep_ratio=0.25))
        method = ServingOptions.of(config.model_config.hf_config).build()
        adapter = adapter_for(config.model_config.hf_config)
        assert list(reasons(config, method, adapter)) == []
        config = Changed(config, changed)
        return list(reasons(config, method, adapter))

    reasons_found = in_fork(found)
    if expected is None:
        assert reasons_found == []
    else:
        assert expected in " ".join(reasons_found)


class Changed:
    """An object some of whose attributes, named by their path, have other values."""

    def __init__(self, of, changed):
        self._of, self._changed = of, changed

    def __getattr__(self, name):
        if name in self._changed:
            return self._changed[name]
        inner = {
            path.removeprefix(f"{name}."): value
            for path, value in self._changed.items()
            if path.startswith(f"{name}.")
        }
        value = getattr(self._of, name)
        if not inner:
            return value
        if all("." not in path for path in inner):
            value = copy.copy(value)
            for path, other in inner.items():
                object.__setattr__(value, path, other)
            return value
        return Changed(value, inner)


def test_the_message_is_short(checkpoint):
    message = refusal(checkpoint("llava"), **given("divprune", keep_ratio=2))
    assert len(json.dumps(message)) < 400
