"""transformers comes when it is needed, and then knows the model, whichever was imported first."""

from __future__ import annotations

import json
import subprocess
import sys

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


# What transformers and the package import of others is there already: half of the time.
EACH = """
import json, os, sys, traceback
import PIL.Image, accelerate, huggingface_hub, numpy, safetensors.torch, tokenizers, torch
assert not {"transformers", "geollava"} & sys.modules.keys()
failed = False
for script in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        try:
            exec(script, {"__name__": "__main__"})
        except BaseException:
            print(f"{script}:", file=sys.stderr)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    failed |= os.waitpid(child, 0)[1] != 0
sys.exit(failed)
"""


def run(script, *arguments):
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_each(*scripts):
    """Each in a process that has imported neither transformers nor the package."""
    run(EACH, json.dumps(scripts))


def test_images_are_read_without_transformers():
    run(
        "import sys; from geollava import imagery; from geollava.commands import main\n"
        "from geollava.answering import geojson, overlay, streaming\n"
        "assert 'transformers' not in sys.modules"
    )


def test_auto_classes_know_the_model():
    run_each(
        *(
            f"import sys; {first}\n{REGISTERED}"
            for first in (
                "import geollava",
                "import transformers, geollava",
                "from geollava import GeoLlavaConfig",
                "import geollava; from transformers import PreTrainedModel",
                "import geollava.model.processing",
                "import geollava.answering.session",
            )
        )
    )


def test_modules_beneath_can_be_imported_by_themselves():
    run_each(*(f"import {module}" for module in sorted(registration.BENEATH)))


def test_other_names_are_refused():
    run(
        "import geollava\n"
        "try:\n    geollava.Nonsense\n"
        "except AttributeError as error:\n    assert 'Nonsense' in str(error)\n"
        "else:\n    raise AssertionError"
    )
