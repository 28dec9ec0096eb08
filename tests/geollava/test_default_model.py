"""The checkpoint that is used when none is named: the small one that is shipped."""

from __future__ import annotations

import json

from geollava.default_model import default_checkpoint
from geollava.evaluate.own_model import GeoLlavaAnswerer
from geollava.evaluate.xlrs import is_correct
from geollava.imagery import as_scene, cut_crops
from geollava.processing import GeoLlavaProcessor
from geollava.scene_drawing import draw
from geollava.scenes import plan, prompt_of, question_rows

from .conftest import byte_tokenizer

SCALE = 1.3
