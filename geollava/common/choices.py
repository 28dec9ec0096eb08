"""Words to choose from, each set said once: for its option and for what checks it.

Nothing is imported here, so that the command line can list them at once.
"""

from __future__ import annotations

from typing import Literal

WeightDtype = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["auto", WeightDtype]
ResizeMode = Literal["pillow", "fast"]
ExifMode = Literal["stored", "applied"]
Engine = Literal["local", "ray"]
OnBadRows = Literal["refuse", "count-wrong", "skip"]
CheckpointForm = Literal["own", "published"]
Ground = Literal["mixed", "earth", "procedural"]
ScenePart = Literal["both", "train", "test"]
SceneLayout = Literal["xlrs", "varied"]
PhrasingPart = Literal["all", "train", "test"]
