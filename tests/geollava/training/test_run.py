"""`geollava train`: the published step, the same again after a kill and over two processes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from geollava import (
    GeoLlavaConfig,
    GeoLlavaForConditionalGeneration,
    GeoLlavaImageProcessor,
    GeoLlavaProcessor,
)
from geollava.training.config import TrainConfig
from geollava.training.folder import last_checkpoint
from geollava.training.loading import load_model
from geollava.training.packs import join
from geollava.training.trainer import build_trainer
from tests.geollava.model.test_published import inputs_of
from tests.geollava.training.conftest import LORA

COMMAND = [sys.executable, "-m", "geollava", "train"]


def history(output):
    state = json.loads((last_checkpoint(output) / "trainer_state.json").read_text())
    return [(log["step"], log["loss"], log["grad_norm"]) for log in state["log_history"]]


def trained(output):
    return load_file(last_checkpoint(output) / "trained.safetensors")


def test_one_step_on_the_published_checkpoint(
    tiny_checkpoint, expected, grad_norms, pictures, tmp_path
):
    processor = GeoLlavaImageProcessor.from_pretrained(tiny_checkpoint)
    published = GeoLlavaConfig.from_pretrained(tiny_checkpoint)
    inputs, labels = inputs_of("train", "a", expected, pictures, processor, published)
    sample = {
        "input_ids": inputs["input_ids"][0],
        "labels": labels[0],
        "pixel_values": inputs["pixel_values"],
        "num_crops": inputs["num_crops"],
    }
    config = TrainConfig(
        model=str(tiny_checkpoint),
        data={"files": ["none.json"]},
        output=tmp_path,
        max_steps=1,
        max_gradient_norm=1e9,
    )
    gradients = {}

    class Recorder(TrainerCallback):
        def on_pre_optimizer_step(self, *_, **kwargs):
            for name, parameter in kwargs["model"].named_parameters():
                gradients[name] = None if parameter.grad is None else parameter.grad.clone()

    model = load_model(config, tiny_checkpoint, published)
    trainer = build_trainer(config, model, [join([sample])])
    trainer.add_callback(Recorder())
    trainer.train()
    loss = trainer.state.log_history[0]["loss"]
    assert loss == pytest.approx(expected["train.loss"].item(), rel=1e-5)
    assert set(gradients) == set(grad_norms)
    for name, norm in grad_norms.items():
        if norm is None:
            assert gradients[name] is None, name
        else:
            assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name
    name = "model.mm_projector.0.weight"
    torch.testing.assert_close(
        gradients[name], expected[f"train.grad.{name}"], atol=1e-5, rtol=1e-4
    )


def test_killed_and_resumed_equals_uninterrupted(write, tmp_path, run):
    options = LORA | {"max_steps": 7, "accumulate": 2, "export": "published"}
    assert run("train", write(**options, output="whole"))[0] == 0

    path = write(**options)
    process = subprocess.Popen([*COMMAND, str(path)], stderr=subprocess.DEVNULL)
    while last_checkpoint(tmp_path / "run") is None and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert history(tmp_path / "run")[-1][0] < 7
    (tmp_path / "run" / "checkpoint-7").mkdir()  # one that was being written
    (tmp_path / "run" / "checkpoint-7" / "trainer_state.json").write_text('{"epoch": 1')
    assert run("train", path)[0] == 2  # without being told to
    code, out, err = run("train", path, "--resume")
    assert code == 0, err
    assert history(tmp_path / "run") == history(tmp_path / "whole")  # to the last bit
    once, again = trained(tmp_path / "whole"), trained(tmp_path / "run")
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in once.items())

    # What is left is a checkpoint like any other, and goes to our form and back.
    assert out.strip() == str(tmp_path / "run" / "model")
    assert run("export", out.strip(), tmp_path / "own", "--form", "own")[0] == 0
    assert run("export", tmp_path / "own", tmp_path / "back")[0] == 0
    published, back = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "run" / "model", tmp_path / "back")
    )
    assert published.keys() == back.keys()
    assert all(torch.equal(published[name], back[name]) for name in back)
    assert not any("lora" in name for name in published)
    GeoLlavaProcessor.from_pretrained(tmp_path / "back")


def test_the_plan_is_said_before_and_each_pack_as_it_begins(write, run, monkeypatch):
    monkeypatch.setattr("geollava.training.trainer.SECONDS_PER_LINE", 0)
    settings = {"max_steps": None, "accumulate": 2, "epochs": 2}
    code, _, err = run("train", write(**settings))
    assert code == 0, err
    plan = re.search(
        r"data: 8 rows -> (\d+) packs .* -> (\d+) steps .* about ([\d,]+) tokens a step", err
    )
    packs, steps = int(plan[1]), int(plan[2])
    assert 1 < packs < 8
    assert steps == 2 * math.ceil(packs / 2)
    assert int(plan[3].replace(",", "")) > 100
    memory = re.search(r"memory: about ([\d.]+) GiB on each device, .*activations", err)
    assert memory
    assert err.index("memory: ") < err.index("pack 1 of this run, step 1 of ")
    begun = re.findall(r"pack (\d+) of this run, step (\d+) of (\d+): [\d,]+ tokens", err)
    assert [int(pack) for pack, _, _ in begun] == list(range(1, 2 * packs + 1))
    assert begun[-1][1] == begun[-1][2] == str(steps)
    crops = re.findall(r"pack (\d+), (forward|backward): (\d+) of (\d+) crops\n", err)
    assert {int(pack) for pack, *_ in crops} == set(range(1, 2 * packs + 1))
    assert all(int(done) < int(total) for _, _, done, total in crops)


def test_resume_of_another_run_is_refused(write, run, tmp_path):
    assert run("train", write(max_steps=1))[0] == 0
    code, _, err = run("train", write(max_steps=2, seed=1), "--resume")
    assert code == 2
    assert "seed: changed since the run" in err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        code, _, err = run("train", write(sharding="fsdp2"), "--resume")
    assert (code, "--resume of sharding: fsdp2 needs GPUs" in err) == (2, True)
    code, _, err = run("train", write(output="nothing"), "--resume")
    assert (code, "holds no run to resume" in err) == (2, True)


# Without the examples' offloading, whose optimizer is compiled for the machine.
ZERO2 = {
    "zero_optimization": {"stage": 2, "contiguous_gradients": True},
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


@pytest.mark.parametrize("sharding", ["fsdp2", "zero2.json"])
def test_two_processes_equal_one(sharding, write, run, tmp_path):
    if sharding == "zero2.json":
        pytest.importorskip("deepspeed")
        (tmp_path / sharding).write_text(json.dumps(ZERO2))
    options = {"max_steps": 4, "samples": {"every": 2, "rows": 1, "max_new_tokens": 2}}
    assert run("train", write(output="one", accumulate=2, **options))[0] == 0
    path = write(output="two", sharding=sharding, **options)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, "--standalone", "-m", "geollava", "train", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(one) == len(two) == 4
    for (_, *ours), (_, *theirs) in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)
    weights = trained(tmp_path / "one")
    for name, tensor in trained(tmp_path / "two").items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-5)
    assert (tmp_path / "two" / "model" / "config.json").is_file()
    answers = [(tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two")]
    assert [json.loads(line)["step"] for line in answers[1].splitlines()] == [2, 4]
    assert answers[0] == answers[1]


def test_parts_learn_at_their_own_rate_and_frozen_ones_stay(write, run, tmp_path):
    parts = {"vision_tower": "frozen", "projector": 1e-3, "language_model": "frozen"}
    samples = {"every": 2, "rows": 2, "max_new_tokens": 3}
    options = {"parts": parts, "assignment": "hard", "samples": samples, "precision": "bfloat16"}
    path = write(**options, report_to=["tensorboard"], max_steps=2)
    assert run("train", path)[0] == 0
    assert set(trained(tmp_path / "run")) == {
        f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").open()]
    assert [(line["step"], line["expected"] != "") for line in lines] == [(2, True)] * 2
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_images_encoded_once_give_the_same_losses(write, run, tmp_path, monkeypatch):
    parts = {"vision_tower": "frozen", "language_model": 1e-4}
    options = {"parts": parts, "assignment": "hard", "max_steps": 4}
    assert run("train", write(**options))[0] == 0
    calls = []
    encode_crops = GeoLlavaForConditionalGeneration.encode_crops
    monkeypatch.setattr(
        GeoLlavaForConditionalGeneration,
        "encode_crops",
        lambda *args, **kwargs: calls.append(1) or encode_crops(*args, **kwargs),
    )
    data = {"files": ["data.json"], "pack_visual_tokens": 150, "encode_once": True}
    assert run("train", write(**options, data=data, output="once"))[0] == 0
    assert len(calls) == 7  # images, of which one row has none
    for (step, loss, norm), (_, same_loss, same_norm) in zip(
        history(tmp_path / "run"), history(tmp_path / "once"), strict=True
    ):
        assert same_loss == pytest.approx(loss, rel=1e-6), step
        assert same_norm == pytest.approx(norm, rel=1e-4), step


def test_export_in_half_precision(write, run, tmp_path):
    assert run("train", write(max_steps=2))[0] == 0
    target = tmp_path / "half"
    options = ("--form", "own", "--dtype", "bfloat16")
    assert run("export", tmp_path / "run", target, *options)[0] == 0
    whole = load_file(tmp_path / "run" / "model" / "model.safetensors")
    half = load_file(target / "model.safetensors")
    assert set(whole) == set(half)
    assert all(torch.equal(whole[name].bfloat16(), half[name]) for name in whole)
