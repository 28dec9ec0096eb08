"""A whole model small enough to run in milliseconds: the recorded one, with a tokenizer added."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from geollava import GeoLlavaForConditionalGeneration, GeoLlavaProcessor, scenes
from geollava.commands import main as cli
from geollava.model.default_model import default_checkpoint
from tests.tokenprune.checkpoint import byte_tokenizer


@pytest.fixture(scope="session")
def tiny_checkpoint(golden) -> Path:
    return golden / "tiny_checkpoint"


@pytest.fixture(scope="session")
def expected(tiny_checkpoint) -> dict[str, torch.Tensor]:
    return load_file(tiny_checkpoint / "expected.safetensors")


@pytest.fixture(scope="session")
def grad_norms(tiny_checkpoint) -> dict[str, float | None]:
    return json.loads((tiny_checkpoint / "expected.json").read_text())["train.grad_norm"]


@pytest.fixture(scope="session")
def pictures(tiny_checkpoint) -> dict[str, Image.Image]:
    return {name: Image.open(tiny_checkpoint / f"image_{name}.png") for name in "ab"}


@pytest.fixture(scope="session")
def model(tiny_checkpoint) -> GeoLlavaForConditionalGeneration:
    """The recorded model. Shared by all tests: do not change it."""
    return GeoLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()


@pytest.fixture(scope="session")
def complete_checkpoint(tiny_checkpoint, tmp_path_factory) -> Path:
    """The recorded checkpoint with a byte tokenizer beside it, as a released one has its own."""
    folder = tmp_path_factory.mktemp("complete") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint_copy(complete_checkpoint, tmp_path) -> Path:
    """A copy of it to damage."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(complete_checkpoint, folder)
    return folder


@pytest.fixture(scope="session")
def pair(complete_checkpoint) -> tuple[GeoLlavaForConditionalGeneration, GeoLlavaProcessor]:
    """Model and processor that fit each other. Shared by all tests: do not change them."""
    model = GeoLlavaForConditionalGeneration.from_pretrained(complete_checkpoint).eval()
    return model, GeoLlavaProcessor.from_pretrained(complete_checkpoint)


@pytest.fixture(scope="session")
def default_pair() -> tuple[GeoLlavaForConditionalGeneration, GeoLlavaProcessor]:
    folder = default_checkpoint()
    model = GeoLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), GeoLlavaProcessor.from_pretrained(folder)


@pytest.fixture
def run(capsys):
    """Runs the command line in this process -> (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return run


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def vrt(source, *, band='<VRTRasterBand dataType="Byte" band="1">', extra="", filename=None):
    """A VRT of 64 x 48 pixels that shows band 1 of a file in its folder."""
    filename = filename or f'<SourceFilename relativeToVRT="1">{source}</SourceFilename>'
    return (
        f'<VRTDataset rasterXSize="64" rasterYSize="48">{extra}{band}<SimpleSource>{filename}'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )


@pytest.fixture(scope="session")
def guessing_checkpoint(tmp_path_factory) -> Path:
    """Answers with one of the letters A to D, now this, now that, by image and by question."""
    folder = tmp_path_factory.mktemp("guessing") / "guesser"
    shutil.copytree(default_checkpoint(), folder)
    shipped = GeoLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    config = copy.deepcopy(shipped.config)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GeoLlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(shipped.model.vision_tower.state_dict())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        letters = GeoLlavaProcessor.from_pretrained(folder).tokenizer.convert_tokens_to_ids(
            list("ABCD")
        )
        model.lm_head.weight.zero_()
        width = model.lm_head.in_features
        model.lm_head.weight[letters] = torch.randn(4, width, generator=generator)
        for layer in model.model.layers:  # strong layers, so that little changes matter
            attention = layer.self_attn
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
                part.weight.mul_(30)
            layer.mlp.down_proj.weight.mul_(30)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """`test.json` as `geollava scenes` writes it: 8 questions to each of 5 images, which are noise
    of other sizes than the questions believe."""
    folder = tmp_path_factory.mktemp("questions")
    rows = []
    for seed in range(5):
        noise(400 + 60 * seed, 300, seed).save(folder / f"{seed}.png")
        rows += scenes.question_rows(scenes.plan(seed, 1100), f"{seed}.png")
    (folder / "test.json").write_text(json.dumps(rows))
    return folder / "test.json"
