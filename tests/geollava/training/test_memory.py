"""The memory that is said beforehand is what a step takes: beside a real one, and in full size."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from geollava import GeoLlavaConfig
from geollava.training.config import TrainConfig
from geollava.training.fake_step import memory

ROOT = Path(__file__).parents[3]
TOKENS, CROPS = 1500, 8
SIZES = {
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 336,
        "patch_size": 14,
    },
    "text_config": {
        "vocab_size": 2000,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    },
}
FORMS = {
    "full": {"gradient_checkpointing": False},
    "full, checkpointed": {"parts": {"vision_tower": 1e-6}},
    "LoRA": {
        "parts": {"vision_tower": "frozen", "projector": "frozen", "language_model": "frozen"},
        "lora": {"rank": 8},
        "gradient_checkpointing": False,
    },
}
# Two steps of the trainer itself in a process of its own; what they take beyond a small model's.
MEASURED = """
import json, sys
import torch
from geollava import GeoLlavaConfig, GeoLlavaForConditionalGeneration
from geollava.common.malloc import return_freed_memory
from geollava.training.config import TrainConfig
from geollava.training.loading import load_model
from geollava.training.packs import join
from geollava.training.trainer import build_trainer
def kib(field):  # of this process alone: `getrusage` remembers the one that started it
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
def step(folder, form, sizes, tokens, crops):
    config = TrainConfig(model=folder, data={"files": ["none"]}, output=folder + "/run",
                         max_steps=2, save_every=100, **form)
    model_config = GeoLlavaConfig(**sizes)
    visual = crops * model_config.num_keep
    ids = torch.full((tokens,), 5)
    ids[:visual] = model_config.image_token_id
    labels = torch.full((tokens,), -100)
    labels[-64:] = 7
    side = model_config.vision_config.image_size
    sample = {"input_ids": ids, "labels": labels, "num_crops": torch.tensor([crops]),
              "pixel_values": torch.randint(255, (crops, 3, side, side), dtype=torch.uint8)}
    model = load_model(config, folder, model_config)
    trainer = build_trainer(config, model, [join([sample])] * 2)
    trainer._save_checkpoint = lambda *args, **kwargs: None  # only steps are counted
    trainer.train()
return_freed_memory()
torch.set_num_threads(1)
small, whole = json.loads(sys.argv[1])
step(*small)  # what is loaded and compiled once is not the step's
before, most_before = kib("VmRSS"), kib("VmHWM")
step(*whole)
assert kib("VmHWM") > 1.2 * most_before, "the step must take more than what came before"
print(1024 * (kib("VmHWM") - before))
"""
# As SIZES, and next to nothing.
SMALL = {
    "vision_config": SIZES["vision_config"]
    | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    "text_config": SIZES["text_config"]
    | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1},
}


def config_of(form):
    return TrainConfig(model="none", data={"files": ["none"]}, output=Path("none"), **form)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", FORMS)
def test_a_real_step_takes_what_was_said(form, tmp_path):
    from geollava import GeoLlavaForConditionalGeneration

    steps = []
    for sizes, tokens, crops in ((SMALL, 100, 1), (SIZES, TOKENS, CROPS)):
        folder = tmp_path / str(tokens)
        GeoLlavaForConditionalGeneration(GeoLlavaConfig(**sizes)).save_pretrained(folder)
        steps.append([str(folder), FORMS[form], sizes, tokens, crops])
    arguments = json.dumps(steps)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, arguments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    measured = int(done.stdout.split()[-1]) / 2**30
    said = sum(memory(config_of(FORMS[form]), GeoLlavaConfig(**SIZES), TOKENS, CROPS).values())
    assert said == pytest.approx(measured, rel=0.1)


def test_more_of_everything_takes_more():
    small = GeoLlavaConfig(**SIZES)
    base = memory(config_of(FORMS["full"]), small, TOKENS, CROPS)
    longer = memory(config_of(FORMS["full"]), small, 2 * TOKENS, CROPS)
    spared = memory(config_of(FORMS["full, checkpointed"]), small, TOKENS, CROPS)
    assert longer["activations"] > 1.8 * base["activations"]
    assert spared["activations"] < 0.6 * base["activations"]
    assert {name: longer[name] for name in base if name != "activations"} == {
        name: value for name, value in base.items() if name != "activations"
    }
    weights = sum(base[name] for name in ("frozen weights", "trained weights"))
    assert base["AdamW"] == pytest.approx(2 * base["trained weights"])
    assert weights == pytest.approx(4 * parameters(small) / 2**30)


def parameters(model_config):
    import torch

    from geollava import GeoLlavaForConditionalGeneration

    with torch.device("meta"):
        model = GeoLlavaForConditionalGeneration(model_config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
def test_the_published_sizes():
    """As the documentation tells them: full, LoRA, QLoRA."""
    module = runpy.run_path(str(ROOT / "examples" / "train" / "memory.py"))
    totals = [sum(module["count"](form).values()) for form in module["FORMS"].values()]
    assert totals == sorted(totals, reverse=True)
    assert totals == pytest.approx([142.4, 25.0, 16.1], abs=0.3)  # GiB
