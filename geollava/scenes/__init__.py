"""Very large scenes whose every object is known, with questions in the families of XLRS-Bench.

scene.py      what can stand in a scene and be asked about it: `Scene`, `Thing`, `Question`
layout.py     `plan`: where everything stands, and which questions are asked
questions.py  a scene's questions as rows: to evaluate on, about boxes, to train on
shapes.py     the outlines of things; draw.py draws a scene, and alone imports Pillow
write.py      `write_scenes`: many scenes as images and rows
"""

from typing import TYPE_CHECKING

from geollava.moved import names_of
from geollava.scenes.layout import is_test, plan
from geollava.scenes.questions import box_rows, describe, question_rows, training_row
from geollava.scenes.scene import Question, Scene, Thing
from geollava.scenes.write import write_scenes

__all__ = [
    "Question",
    "Scene",
    "Thing",
    "box_rows",
    "describe",
    "is_test",
    "plan",
    "question_rows",
    "training_row",
    "write_scenes",
]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)
