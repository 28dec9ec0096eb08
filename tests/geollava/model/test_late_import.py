"""transformers comes when it is needed, and then knows the model, whichever was imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from geollava.model import registration

REGISTERED = """
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
import geollava
config = CONFIG_MAPPING["geollava"]
assert config is geollava.GeoLlavaConfig
assert "llava_qwen" in CONFIG_MAPPING
assert MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config] is geollava.GeoLlavaForConditionalGeneration
assert PROCESSOR_MAPPING[config] is geollava.GeoLlavaProcessor
assert not any(type(finder).__name__ == "AfterTransformers" for finder in sys.meta_path)
"""


def run(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_images_are_read_without_transformers():
    run(
        "import sys; from geollava import imagery; from geollava.commands import main\n"
        "from geollava.answering import geojson, overlay, streaming\n"
        "assert 'transformers' not in sys.modules"
    )


@pytest.mark.parametrize(
    "first",
    [
        "import geollava",
        "import transformers, geollava",
        "from geollava import GeoLlavaConfig",
        "import geollava; from transformers import PreTrainedModel",
        "import geollava.model.processing",
        "import geollava.answering.session",
    ],
)
def test_auto_classes_know_the_model(first):
    run(f"import sys; {first}\n{REGISTERED}")


@pytest.mark.parametrize("module", sorted(registration.BENEATH))
def test_modules_beneath_can_be_imported_by_themselves(module):
    run(f"import {module}")


def test_other_names_are_refused():
    run(
        "import geollava\n"
        "try:\n    geollava.Nonsense\n"
        "except AttributeError as error:\n    assert 'Nonsense' in str(error)\n"
        "else:\n    raise AssertionError"
    )
