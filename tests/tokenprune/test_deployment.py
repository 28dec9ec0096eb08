"""Models as people run them: spread and offloaded, adapted, quantized, compiled, trained.

On three hosts: one that the generic adapter serves with positions of one axis, one with several
axes, and one with an adapter of its own, which takes methods between the layers as well.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any
from unittest import mock

import accelerate
import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import tokenprune
from tokenprune import get_method
from tokenprune.hosts.registry import find_adapter

from . import hosts
from .families import FAMILIES
from .hosts import PAD, Host
from .test_apply import ONE, THREE, generated, logits_of, traces
from .test_training import by_hand

NAMES = ("mistral3", "paddleocr_vl", "qwen2_5_vl")
CASES = [
    *((name, "divprune") for name in NAMES),
    ("qwen2_5_vl", "fastervlm"),
    ("qwen2_5_vl", "fastv"),
]
each_case = pytest.mark.parametrize(("name", "method"), CASES)


def build(name: str) -> Host:
    torch.manual_seed(0)
    return FAMILIES[name]()


def method_of(name: str) -> tokenprune.Method:
    return get_method(name, **({"layer": 1} if name == "fastv" else {}))


def labeled(host: Host, rows: list[list[int]], *, seed: int = 0) -> dict[str, Any]:
    inputs = host.inputs(rows, seed=seed, pad_left=False)
    ids = inputs["input_ids"]
    return {**inputs, "labels": ids.masked_fill((ids == host.image) | (ids == PAD), -100)}


@dataclasses.dataclass
class Said:
    """What a model says to a prompt and to a batch, with a reduction in force or without one."""

    logits: list[Tensor]
    sequences: list[Tensor]

    @staticmethod
    def by(host: Host) -> Said:
        prompts = [host.inputs(rows) for rows in (ONE, THREE)]
        return Said(
            [logits_of(host, inputs) for inputs in prompts],
            [generated(host, inputs, max_new_tokens=3).sequences for inputs in prompts],
        )

    def assert_equals(self, other: Said, tolerance: float = 1e-5) -> None:
        for ours, expected in zip(self.logits, other.logits, strict=True):
            torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)
        for ours, expected in zip(self.sequences, other.sequences, strict=True):
            assert torch.equal(ours, expected)


def short_and_whole(host: Host, method: str) -> tuple[Said, Said]:
    with tokenprune.apply(host.model, method_of(method), num_keep=5):
        short = Said.by(host)
    whole = Said.by(host)
    assert short.logits[0].shape[1] < whole.logits[0].shape[1]
    return short, whole


# -- accelerate: device_map and offloading --------------------------------------------------------


def places(host: Host) -> dict[str, str]:
    """A `device_map`: the first decoder layer, and all that sees images, lie on the disk."""
    language_model: Any = find_adapter(host.model).language_model
    names = {module: name for name, module in host.model.named_modules()}
    parts = dict.fromkeys(language_model.children(), "cpu")
    del parts[language_model.layers]
    parts |= dict.fromkeys(language_model.layers, "cpu") | {language_model.layers[0]: "disk"}
    above = [host.model, *(one for one in host.model.modules() if language_model in one.children())]
    for module in above:
        for part in module.children():
            if part not in above and part is not language_model:
                parts[part] = "cpu" if names[part] == "lm_head" else "disk"
    return {names[part]: place for part, place in parts.items()}


@each_case
def test_a_model_that_is_offloaded(name, method, tmp_path):
    host = build(name)
    short, whole = short_and_whole(host, method)
    host.model.save_pretrained(tmp_path / "model")
    model = type(host.model).from_pretrained(
        tmp_path / "model", device_map=places(host), offload_folder=tmp_path / "offloaded"
    )
    adapter = find_adapter(model)
    assert next(adapter.language_model.layers[0].parameters()).device.type == "meta"
    spread = dataclasses.replace(host, model=model.eval())
    Said.by(spread).assert_equals(whole)
    before = traces(model)
    with tokenprune.apply(model, method_of(method), num_keep=5):
        Said.by(spread).assert_equals(short)
    assert traces(model) == before
    Said.by(spread).assert_equals(whole)
    report = tokenprune.verify(model, host.inputs(ONE), method=method_of(method), keep_ratio=0.4)
    assert report.ok, report


@each_case
def test_a_model_that_is_spread_while_a_handle_is_in_force(name, method, tmp_path):
    """accelerate's hooks come after ours, and go before them, or after."""
    host = build(name)
    short, whole = short_and_whole(host, method)
    handle = tokenprune.apply(host.model, method_of(method), num_keep=5)
    accelerate.dispatch_model(
        host.model, places(host), main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    Said.by(host).assert_equals(short)
    handle.remove()
    Said.by(host).assert_equals(whole)
    handle = tokenprune.apply(host.model, method_of(method), num_keep=5)
    accelerate.hooks.remove_hook_from_submodules(host.model)
    Said.by(host).assert_equals(short)
    handle.remove()
    Said.by(host).assert_equals(whole)


def test_weights_that_are_nowhere_are_refused():
    host = build("qwen2_5_vl")
    layer = find_adapter(host.model).language_model.layers[0].to("meta")
    assert next(layer.parameters()).device.type == "meta"
    with (
        tokenprune.apply(host.model, method_of("fastv"), num_keep=5),
        pytest.raises(NotImplementedError, match="no hook of accelerate says where it runs"),
    ):
        logits_of(host, host.inputs(ONE))


# -- peft -----------------------------------------------------------------------------------------


def adapted(host: Host) -> Any:
    """LoRA on the language model, with weights that change what it says."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=r".*(language_model|text_model).*(q_proj|v_proj)")
    model = peft.get_peft_model(host.model, config)
    for key, weight in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(weight, std=0.5)
    return model.eval()


@each_case
@pytest.mark.parametrize("which", ["the peft model", "the model inside"])
def test_lora_is_the_merged_model(name, method, which):
    host = build(name)
    plain, _ = short_and_whole(host, method)
    model = adapted(host)
    merged = dataclasses.replace(host, model=copy.deepcopy(model).merge_and_unload())
    short, whole = short_and_whole(merged, method)
    assert (short.logits[0] - plain.logits[0]).abs().max() > 1e-3
    outside = dataclasses.replace(host, model=model)
    target = model if which == "the peft model" else model.get_base_model()
    before = traces(model)
    with tokenprune.apply(target, method_of(method), num_keep=5) as handle:
        Said.by(outside).assert_equals(short, 1e-4)
        assert handle.report().tokens_after
    Said.by(outside).assert_equals(whole, 1e-4)
    assert traces(model) == before
    report = tokenprune.verify(target, host.inputs(ONE), method=method_of(method), keep_ratio=0.4)
    assert report.ok, report


@each_case
def test_a_handle_outlives_merge_and_unload(name, method):
    host = build(name)
    model = adapted(host)
    merged = dataclasses.replace(host, model=copy.deepcopy(model).merge_and_unload())
    short, whole = short_and_whole(merged, method)
    handle = tokenprune.apply(model, method_of(method), num_keep=5)
    inside = dataclasses.replace(host, model=model.merge_and_unload())
    Said.by(inside).assert_equals(short, 1e-4)
    handle.remove()
    Said.by(inside).assert_equals(whole, 1e-4)


@each_case
def test_a_step_of_lora_reaches_every_adapter(name, method):
    """The loss is that of the columns that remain, and nothing but the adapters is trained."""
    host = build(name)
    model = adapted(host).train()
    given = labeled(host, [[3, 0, 4], [8, 0, 5]])
    with tokenprune.apply(model, method_of(method), num_keep=5) as handle:
        output = model(**given)
        output.loss.backward()
        total, _, count = by_hand(output.logits.detach(), handle.align(given["labels"]))
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5)
    trained = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 8  # two layers, two projections, A and B
    assert all(weight.grad.abs().sum() > 0 for weight in trained.values())


# -- bitsandbytes ---------------------------------------------------------------------------------


def wide(name: str) -> Host:
    """Four bits come in blocks of 64 on a CPU, so a language model of width 64."""
    torch.manual_seed(0)
    plain = hosts.qwen
    text = {"hidden_size": 64, "num_attention_heads": 8}

    def qwen(config: Any, model: Any, vision: dict[str, Any]) -> Host:
        return plain(config, model, vision | {"out_hidden_size": 64})

    with mock.patch.dict(hosts.TEXT, text), mock.patch.object(hosts, "qwen", qwen):
        return FAMILIES[name]()


@each_case
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_model(name, method, bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    host = wide(name)
    skipped = [
        key
        for key, one in host.model.named_modules()
        if isinstance(one, nn.Linear) and (one.in_features % 64 or one.out_features % 64)
    ]
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    config = transformers.BitsAndBytesConfig(
        **{f"load_in_{bits}bit": True}, llm_int8_skip_modules=[*skipped, "lm_head"], **four
    )
    host.model.save_pretrained(tmp_path)
    model = type(host.model).from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.float32
    )
    kind = "Linear4bit" if bits == 4 else "Linear8bitLt"
    layers = find_adapter(model).language_model.layers
    assert type(layers[0].self_attn.q_proj).__name__ == type(layers[1].mlp.up_proj).__name__ == kind
    report = tokenprune.verify(
        model.eval(), host.inputs(ONE), method=method_of(method), keep_ratio=0.4
    )
    assert report.ok, report


# -- torch.compile --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("mistral3", "divprune"),
        ("paddleocr_vl", "divprune"),
        ("qwen2_5_vl", "fastervlm"),
        ("qwen2_5_vl", "fastv"),
    ],
)
def test_compiled_after(name, method):
    """What was compiled under a handle says the whole again without it, and the short with one."""
    host = build(name)
    inputs = host.inputs(ONE)

    def said() -> tuple[Tensor, Tensor]:
        return logits_of(host, inputs), generated(host, inputs, max_new_tokens=2).sequences

    whole = logits_of(host, inputs)
    with tokenprune.apply(host.model, method_of(method), num_keep=5):
        short = said()
    torch.compiler.reset()
    handle = tokenprune.apply(host.model, method_of(method), num_keep=5)
    host.model.forward = torch.compile(host.model.forward, backend="eager")
    torch.testing.assert_close(said(), short, atol=1e-5, rtol=0)
    handle.remove()
    torch.testing.assert_close(logits_of(host, inputs), whole, atol=1e-5, rtol=0)
    with tokenprune.apply(host.model, method_of(method), num_keep=5):
        torch.testing.assert_close(logits_of(host, inputs), short[0], atol=1e-5, rtol=0)
    torch.compiler.reset()


@pytest.mark.slow
def test_a_forward_that_was_compiled_before_is_noticed():
    host = build("mistral3")
    inputs = host.inputs(ONE)
    torch.compiler.reset()
    host.model.forward = torch.compile(host.model.forward, backend="eager")
    logits_of(host, inputs)
    with (
        tokenprune.apply(host.model, "divprune", num_keep=5),
        pytest.raises(RuntimeError, match="one that was compiled before runs on without"),
    ):
        logits_of(host, inputs)
    torch.compiler.reset()


# -- training -------------------------------------------------------------------------------------


@each_case
def test_the_trainers_loss_is_the_one_by_hand(name, method, tmp_path):
    host = build(name)
    examples = [labeled(host, [[3, 0, 9]]), labeled(host, [[6, 0, 2, 0, 4]], seed=1)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        max_steps=1,
        logging_steps=1,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        prediction_loss_only=True,
    )
    trainer = transformers.Trainer(
        model=host.model,
        args=arguments,
        train_dataset=examples[:1],
        eval_dataset=examples,
        data_collator=lambda batch: batch[0],
    )
    with tokenprune.apply(host.model, method_of(method), num_keep=5) as handle:
        expected = []
        for given in examples:
            with torch.no_grad():
                logits = host.model(**given).logits
            total, _, count = by_hand(logits, handle.align(given["labels"]))
            expected.append(total / count)
        found = trainer.evaluate()["eval_loss"]
        assert found == pytest.approx(sum(expected) / len(expected), rel=1e-5)
        trainer.train()
        (step,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert step == pytest.approx(expected[0], rel=1e-3)
        assert trainer.evaluate()["eval_loss"] < found


@each_case
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_with_checkpointing_are_those_without(name, method, reentrant):
    host = build(name)
    given = labeled(host, [[3, 0, 4], [8, 0, 5]])
    host.model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            options = {"use_reentrant": reentrant}
            host.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            assert host.model.is_gradient_checkpointing
        with tokenprune.apply(host.model, method_of(method), num_keep=5):
            host.model(**given).loss.backward()
        named = host.model.named_parameters()
        found.append({key: one.grad.clone() for key, one in named if one.grad is not None})
        host.model.zero_grad()
    without, with_it = found
    tower = [key for key in without if "vi" in key.partition("language_model")[0]]
    assert tower
    assert set(with_it) == set(without)
    for key, expected in without.items():
        torch.testing.assert_close(with_it[key], expected, msg=key)
