"""Very large scenes whose every object is known, with questions in the families of XLRS-Bench.

scene.py      what can stand in a scene and be asked about it: `Scene`, `Thing`, `Question`
layout.py     `plan`: where everything stands, and which questions are asked
questions.py  a scene's questions as rows: to evaluate on, about boxes, to train on
varied_plan.py `plan_varied`: scenes of any content; facts.py says what is true of a scene
families.py   what is asked about facts, phrasing.py in which words; asked_rows.py makes rows of it
shapes.py     the outlines of things; draw.py draws a scene, and alone imports Pillow
write.py      `write_scenes`: many scenes as images and rows
"""

from typing import TYPE_CHECKING

from geollava.moved import names_of
from geollava.scenes.facts import Fact, Facts, facts_of
from geollava.scenes.families import Asked, ask_in_words
from geollava.scenes.layout import is_test, plan
from geollava.scenes.questions import box_rows, describe, question_rows, training_row
from geollava.scenes.scene import Question, Scene, Thing
from geollava.scenes.varied_plan import plan_varied
from geollava.scenes.write import write_scenes

__all__ = [
    "Asked",
    "Fact",
    "Facts",
    "Question",
    "Scene",
    "Thing",
    "ask_in_words",
    "box_rows",
    "describe",
    "facts_of",
    "is_test",
    "plan",
    "plan_varied",
    "question_rows",
    "training_row",
    "write_scenes",
]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)
